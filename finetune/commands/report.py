"""``finetune report``: write a self-contained HTML page, or PNG plots, of a run."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from finetune.checkpoints import run_dir
from finetune.commands.check_data import known_check
from finetune.commands.evaluate import EvalOptions, Evaluated, compute, write_files
from finetune.config.load import to_yaml
from finetune.config.stages import stage_configs
from finetune.core.device import versions
from finetune.core.errors import FinetuneError
from finetune.core.files import exists, is_folder, write_text
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import plural, today, valid_utf8
from finetune.core.threads import on_cores
from finetune.data.checks.preflight import preflight_check
from finetune.data.images import below
from finetune.data.loading.dataloader import Unreadable, unreadable
from finetune.data.loading.decoding import read_photo
from finetune.data.sources.open import find_train_val
from finetune.freezing.freeze_report import make_freeze_report
from finetune.freezing.plan import make_plan
from finetune.inference.embedding_map import project
from finetune.inference.prediction_rows import best_classes
from finetune.inference.thumbnails import data_url, looked_at, seen_part, thumbnail
from finetune.models.build import ModelSpec
from finetune.report.page import (
    DataFacts,
    EmbeddingMap,
    Facts,
    Listed,
    MapPoint,
    Picture,
    render_page,
)
from finetune.report.plots import Curve, draw_confusion, draw_curves, load_matplotlib
from finetune.results.check import ClassRow
from finetune.results.evaluation import EvalResult, PageResult
from finetune.results.learning_curve import LearningCurve

MISTAKES, WITH_HEAT, UNCERTAIN = 96, 16, 24
"""Maximum numbers of pictures on a page: misclassified images, those of them with a Grad-CAM
overlay, and uncertain images. Each picture is ten to twenty kilobytes."""
LISTED = 2000
"""Number of mistakes in the page's list, apart from those with pictures."""
HEAT_FROM = 128
"""Smallest side of the network's input with heat maps; their grid is coarser than what is seen on a
smaller one."""
MAPPED, MAPPED_LARGE = 2000, 400
"""Maximum number of points on a map, and up to how many their thumbnails are larger. A thumbnail is
one to three kilobytes."""
MAP_SIDE, MAP_SIDE_LARGE, MAP_QUALITY = 48, 96, 60
_AT_ONCE = 64
_IF_UNKNOWN = "`finetune eval --report --ignore-unknown` writes the page without their images."
_SLASHES = tuple(filter(None, (os.sep, os.altsep)))


def report(
    run: str,
    *,
    data: str | None = None,
    split: str = "val",
    output: Path | str | None = None,
    as_pictures: bool = False,
    map_method: str | None = None,
    reporter: Reporter | None = None,
) -> PageResult:
    """Score a run and write its HTML page.

    Args:
        run: Run directory or checkpoint.
        data: Data to score on instead of the run's own.
        output: Output file, or a folder: one that exists, or a name that ends in a slash. By
            default ``report.html`` next to the checkpoint, whose name carries another split or
            other data. With ``as_pictures`` always a folder.
        as_pictures: Whether to write learning curves and confusion matrix as PNG files instead of
            a page.
        map_method: ``pca`` or ``umap`` adds a map of the embeddings to the page; see
            `finetune.report.page.embedding_map.choose_method`.

    Raises:
        CheckpointError, DataError, OutputError.
        ConfigError: matplotlib is missing.
    """
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    if as_pictures:
        load_matplotlib(Path(run_dir.CURVES))
    path = run_dir.checkpoint_of(run)
    name = run_dir.of_evaluation(run_dir.REPORT, path, split=split, data=data)
    target = path.parent if as_pictures else path.parent / name
    if output is not None:
        target = Path(output) if as_pictures else _page_file(str(output), name)
    options = EvalOptions(data=data, split=split, embeddings=map_method is not None)
    evaluated = compute(path, options, if_unknown=_IF_UNKNOWN, reporter=reporter)
    if as_pictures:
        files = _pictures(evaluated, run, path, target, reporter)
    else:
        drawn = None if map_method is None else _map(evaluated, map_method, reporter)
        files = [_page(evaluated, run, path, target, reporter, drawn)]
    return PageResult(
        run=run,
        files=tuple(map(str, files)),
        num_bytes=sum(file.stat().st_size for file in files),
        elapsed_s=time.perf_counter() - start,
        features=evaluated.result.features,
        map_method=map_method,
    )


def evaluate_and_report(
    path: Path,
    options: EvalOptions | None = None,
    *,
    output: Path | None = None,
    reporter: Reporter | None = None,
) -> EvalResult:
    """Run ``eval --report``: `evaluate_checkpoint`, and the HTML page of the same evaluation."""
    reporter = reporter or SilentReporter()
    evaluated = compute(path, options or EvalOptions(), reporter=reporter)
    result = write_files(evaluated, output, path.parent, reporter)
    target = (output or path.parent) / evaluated.name_of(run_dir.REPORT)
    page = _page(evaluated, run_dir.run_of(path), path, target, reporter)
    return replace(result, files=(*result.files, str(page)), next=())


def _page_file(output: str, name: str) -> Path:
    """Return the page's path for ``--output``, which may be a folder; the folder is created.

    Args:
        name: Name of the page in a folder.
    """
    folder = Path(output)
    if not output.endswith(_SLASHES) and not is_folder(folder):
        return folder
    run_dir.make_output(folder)
    return folder / name


def _pictures(
    evaluated: Evaluated, run: str, path: Path, folder: Path, reporter: Reporter
) -> list[Path]:
    run_dir.make_output(folder)
    files = []
    records = run_dir.records_of(path)
    if records:
        draw_curves([Curve.of(run, records)], folder / run_dir.CURVES, reporter=reporter)
        files.append(folder / run_dir.CURVES)
    result, confusion = evaluated.result, folder / evaluated.name_of(run_dir.CONFUSION)
    draw_confusion(result.per_class, result.confused, confusion, reporter=reporter)
    return [*files, confusion]


def _page(
    evaluated: Evaluated,
    run: str,
    path: Path,
    target: Path,
    reporter: Reporter,
    drawn: EmbeddingMap | None = None,
) -> Path:
    reporter.status("drawing the page")
    result, metadata = evaluated.result, evaluated.opened.metadata
    config = metadata.config
    spec = ModelSpec(
        metadata.model_name, config.model.weights, metadata.build_flags, metadata.preprocessing
    )
    plan = make_plan(config, len(metadata.class_names), spec=spec)
    freeze = make_freeze_report(plan, config, config.optimizer, split=evaluated.opened.engine.split)
    wrong, uncertain = _mistakes(evaluated), _least_certain(evaluated)
    heat = WITH_HEAT if metadata.preprocessing.crop >= HEAT_FROM else 0
    facts = Facts(
        run=run,
        result=replace(result, checkpoint=path.name),
        freeze=freeze,
        epoch=metadata.epoch,
        monitor=config.train.monitor,
        records=run_dir.records_of(path),
        mistakes=_drawn(evaluated, wrong, reporter, heat=heat),
        uncertain=_drawn(evaluated, uncertain, reporter, heat=0),
        listed=_listed(evaluated, wrong, uncertain),
        num_mistakes=sum(pair.count for pair in result.confused),
        written=today(),
        data=_data(evaluated, path.parent / run_dir.CONFIG, reporter),
        config=to_yaml(config),
        rerun=_rerun(path.parent / run_dir.CONFIG, config.output_dir),
        chosen_on_these=result.split == "val" and result.data == config.data.root,
        versions=metadata.versions | {"page": versions()["finetune"]},
        stages=stage_configs(config) if config.stages else (),
        embedding_map=drawn,
        curve=_learning_curve(path.parent / run_dir.LEARNING_CURVE, reporter),
        suspects=_beside(path.parent / run_dir.SUSPECTS_PAGE, target),
    )
    write_text(target, render_page(facts))
    return target


def _learning_curve(path: Path, reporter: Reporter) -> LearningCurve | None:
    """Return the learning curve that ``learning-curve RUN`` has written, if there is one."""
    if not exists(path):
        return None
    try:
        return TypeAdapter(LearningCurve).validate_json(path.read_bytes())
    except (OSError, ValueError):
        reporter.warn(f"{path}: cannot be read; the page has no learning curve")
        return None


def _beside(page: Path, target: Path) -> str:
    """Return the name of a page that lies beside another one; empty if it does not."""
    return page.name if exists(page) and page.parent == target.parent else ""


def _rerun(config: Path, output_dir: str) -> str:
    """Return the command that repeats the run.

    If the checkpoint has no config file next to it, the command uses the config on the page.
    """
    if exists(config):
        folder = config.parent
        if folder.name in ("", ".."):  # the working directory, or one above it
            folder = folder.resolve()
        return run_dir.rerun_command(config, str(folder))
    command = run_dir.rerun_command(Path(run_dir.CONFIG), output_dir)
    return f"# with the config below saved as {run_dir.CONFIG}\n{command}"


def _mistakes(evaluated: Evaluated) -> list[int]:
    """Return indices of misclassified images to show.

    The `WITH_HEAT` images with the highest loss come first; the others are taken from the confused
    class pairs in turn, and sorted by loss.
    """
    labels, predicted = evaluated.labels, evaluated.predicted
    losses = evaluated.scored.losses
    order = _by_loss(evaluated)
    worst, rest = order[:WITH_HEAT], order[WITH_HEAT:]
    by_pair: dict[tuple[int, int], list[int]] = {}
    for at in rest:
        by_pair.setdefault((int(labels[at]), int(predicted[at])), []).append(at)
    in_turn = [
        at
        for round_ in range(max(map(len, by_pair.values()), default=0))
        for pair in by_pair.values()
        for at in pair[round_ : round_ + 1]
    ]
    more = sorted(in_turn[: MISTAKES - len(worst)], key=lambda at: -float(losses[at]))
    return worst + more


def _by_loss(evaluated: Evaluated) -> list[int]:
    """Return indices of all misclassified images, highest loss first."""
    losses = evaluated.scored.losses
    wrong = (evaluated.predicted != evaluated.labels).nonzero()[:, 0]
    order: list[int] = wrong[losses[wrong].argsort(descending=True, stable=True)].tolist()
    return order


def _listed(evaluated: Evaluated, wrong: Sequence[int], uncertain: Sequence[int]) -> list[Listed]:
    """Return the images of the page's list: mistakes, highest loss first, then uncertain ones."""
    order = _by_loss(evaluated)
    mistakes = {*order[:LISTED], *wrong}
    positions = dict.fromkeys([*(at for at in order if at in mistakes), *uncertain])
    images, predicted = evaluated.images, evaluated.predicted.tolist()
    return [
        Listed(
            path=valid_utf8(below(images.paths[at], evaluated.base)),
            true=images.class_names[images.labels[at]],
            predicted=images.class_names[predicted[at]],
            probability=float(evaluated.scored.probabilities[at, predicted[at]]),
            uncertain=at in {*uncertain},
        )
        for at in positions
    ]


def _least_certain(evaluated: Evaluated) -> list[int]:
    two = evaluated.scored.probabilities.topk(2, dim=1).values
    margins = two[:, 0] - two[:, 1]
    chosen: list[int] = margins.argsort(stable=True)[:UNCERTAIN].tolist()
    return chosen


def _drawn(
    evaluated: Evaluated, positions: Sequence[int], reporter: Reporter, *, heat: int
) -> list[Picture]:
    """Build thumbnails of the photos, with Grad-CAM overlays for the first ``heat`` of them."""
    images, metadata = evaluated.images, evaluated.opened.metadata
    photos = list(_photos(evaluated, positions, reporter))
    predicted = evaluated.predicted[list(positions)].tolist()
    heats: list[str | None] = [None] * len(photos)
    if heat and photos:
        model = evaluated.opened.model.eval()
        first = looked_at(model, photos[:heat], predicted[:heat], metadata.preprocessing)
        heats[: len(first)] = first
    chosen = list(positions)
    best = best_classes(evaluated.logits[chosen], evaluated.scored.probabilities[chosen], 5)
    return [
        Picture(
            path=valid_utf8(below(images.paths[at], evaluated.base)),
            true=images.class_names[images.labels[at]],
            predicted=images.class_names[label],
            probability=float(evaluated.scored.probabilities[at, label]),
            photo=thumbnail(photo),
            size=(photo.shape[2], photo.shape[1]),
            seen=seen_part(photo, metadata.preprocessing),
            top=[
                (images.class_names[number], share)
                for number, share in zip(numbers, shares, strict=True)
            ],
            heat=hot,
        )
        for at, label, photo, hot, numbers, shares in zip(
            positions, predicted, photos, heats, *best, strict=True
        )
    ]


def _photos(evaluated: Evaluated, positions: Sequence[int], reporter: Reporter) -> Iterator[Tensor]:
    for at in reporter.track(positions, "pictures", total=len(positions)):
        yield _photo(evaluated, at)


def _photo(evaluated: Evaluated, at: int) -> Tensor:
    path = evaluated.images.paths[at]
    try:
        return read_photo(path, evaluated.opened.metadata.preprocessing.levels)
    except Exception as error:  # it was readable when scored, or its features were cached
        raise unreadable([Unreadable.because(path, error)]) from error


def _map(evaluated: Evaluated, method: str, reporter: Reporter) -> EmbeddingMap:
    """Project the embeddings of all images, and draw at most `MAPPED` of them."""
    assert evaluated.embeddings is not None
    images, labels, predicted = evaluated.images, evaluated.labels, evaluated.predicted
    found = project(evaluated.embeddings, method)
    wrong = (predicted != labels)[found.kept]
    rows = _evenly(wrong.nonzero()[:, 0].tolist(), MAPPED)
    rows += _evenly((~wrong).nonzero()[:, 0].tolist(), MAPPED - len(rows))
    kept = found.kept.tolist()
    side = MAP_SIDE_LARGE if len(rows) <= MAPPED_LARGE else MAP_SIDE

    def drawn(row: int) -> MapPoint:
        at = kept[row]
        x, y = found.positions[row].tolist()
        return MapPoint(
            x=x,
            y=y,
            path=valid_utf8(below(images.paths[at], evaluated.base)),
            true=images.class_names[images.labels[at]],
            predicted=images.class_names[int(predicted[at])],
            photo=data_url(_photo(evaluated, at), side=side, quality=MAP_QUALITY),
        )

    batches = [sorted(rows)[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    return EmbeddingMap(
        method=method,
        dimensions=evaluated.embeddings.shape[1],
        shares=found.shares,
        points=[
            point
            for batch in reporter.track(batches, "map", total=len(batches))
            for point in on_cores(drawn, batch)
        ],
        num_mistakes=int(wrong.sum()),
        num_positions=len(kept),
        problem=found.problem,
    )


def _evenly(rows: Sequence[int], most: int) -> list[int]:
    """Return all rows, or ``most`` evenly spaced ones."""
    if len(rows) <= most:
        return list(rows)
    return [rows[number * len(rows) // most] for number in range(most)]


def _data(evaluated: Evaluated, config_file: Path, reporter: Reporter) -> DataFacts:
    """Return the counts of the run's own images, and what check-data has found among them."""
    metadata = evaluated.opened.metadata
    config = metadata.config
    try:
        found = find_train_val(config.data, seed=config.seed, reporter=reporter)
        checked = preflight_check(
            found.train, found.val, on_unreadable="skip", base=found.base, reporter=reporter
        )
        report = known_check(config, input_size=metadata.preprocessing.crop)
    except FinetuneError as error:
        return DataFacts(f"The run's own data could not be inspected: {valid_utf8(str(error))}")
    train, val = checked.parts
    text = (
        f"{len(train):,} training and {len(val):,} validation images of "
        f"{len(train.class_names)} classes."
    )
    if checked.skipped:
        text += f" {plural(len(checked.skipped), 'file')} could not be read and were left out."
    counts = zip(train.class_names, train.counts(), val.counts(), strict=True)
    file = shlex.quote(str(config_file))
    return DataFacts(
        text=text,
        splits=("train", "val"),
        classes=[ClassRow(name, sum(row), tuple(row)) for name, *row in counts],
        findings=None
        if report is None
        else [
            replace(
                one, title=valid_utf8(one.title), examples=tuple(map(valid_utf8, one.examples[:3]))
            )
            for one in report.findings
            if one.kind != "note"  # a note on the data, which follows
        ],
        notes=[valid_utf8(note) for note in found.notes],
        command=f"finetune check-data --config {file} --report" if exists(config_file) else "",
    )
