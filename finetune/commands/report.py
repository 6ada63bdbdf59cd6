"""``finetune report``: one page of a run, to look at, to print and to send."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune import run_folder
from finetune.commands.evaluate import Evaluated, compute, write_files
from finetune.config_file import to_yaml
from finetune.data.decoding import read_photo
from finetune.data.images import below
from finetune.data.loading import Unreadable, unreadable
from finetune.data.quick_check import quick_check
from finetune.data.sources import find_train_val
from finetune.errors import FinetuneError
from finetune.eval_results import EvalResult, PageResult
from finetune.files import exists, is_folder, write_text
from finetune.model import ModelSpec
from finetune.pictures import data_url, looked_at
from finetune.planning import make_freeze_report, make_plan
from finetune.progress import Progress, Silent
from finetune.report.page import Facts, Picture, render_page
from finetune.report.plots import (
    Curve,
    draw_confusion,
    draw_curves,
    load_matplotlib,
)
from finetune.runtime import versions

MISTAKES, WITH_HEAT, UNCERTAIN = 96, 16, 24
"""Pictures on a page: some five to ten kilobytes each, two where heat stands beside."""
_IF_UNKNOWN = "`finetune eval --report --ignore-unknown` writes the page without their images."
_SLASHES = tuple(filter(None, (os.sep, os.altsep)))


def report(
    run: str,
    *,
    data: str | None = None,
    split: str = "val",
    output: Path | str | None = None,
    as_pictures: bool = False,
    progress: Progress | None = None,
) -> PageResult:
    """Score a run and write its page.

    Args:
        run: A run's folder, or a checkpoint.
        data: Other data than the run's own.
        output: The page's file, or a folder for it: one that exists, or a name that ends in a
            slash. By default ``report.html`` beside the checkpoint. With ``as_pictures`` a folder.
        as_pictures: Learning curves and confusion matrix as PNG instead of a page.

    Raises:
        CheckpointError, DataError, OutputError.
        ConfigError: matplotlib is absent.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    if as_pictures:
        load_matplotlib(Path(run_folder.CURVES))
    path = run_folder.checkpoint_of(run)
    target = path.parent if as_pictures else path.parent / run_folder.REPORT
    if output is not None:
        target = Path(output) if as_pictures else _page_file(str(output))
    evaluated = compute(path, data=data, split=split, if_unknown=_IF_UNKNOWN, progress=progress)
    if as_pictures:
        files = _pictures(evaluated, run, path, target, progress)
    else:
        files = [_page(evaluated, run, path, target, progress)]
    return PageResult(
        run=run,
        files=tuple(map(str, files)),
        num_bytes=sum(file.stat().st_size for file in files),
        elapsed_s=time.perf_counter() - start,
    )


def evaluate_and_report(
    path: Path,
    *,
    data: str | None = None,
    split: str = "val",
    output: Path | None = None,
    calibrate: bool = False,
    ignore_unknown: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """``eval --report``: as `evaluate_checkpoint`, and the page of the same evaluation."""
    progress = progress or Silent()
    evaluated = compute(
        path,
        data=data,
        split=split,
        calibrate=calibrate,
        ignore_unknown=ignore_unknown,
        progress=progress,
    )
    result = write_files(evaluated, output, path.parent, progress)
    target = (output or path.parent) / run_folder.REPORT
    page = _page(evaluated, run_folder.run_of(path), path, target, progress)
    return replace(result, files=(*result.files, str(page)))


def _page_file(output: str) -> Path:
    """The file that ``--output`` names, by itself or by its folder, which is made."""
    folder = Path(output)
    if not output.endswith(_SLASHES) and not is_folder(folder):
        return folder
    run_folder.make_output(folder)
    return folder / run_folder.REPORT


def _pictures(
    evaluated: Evaluated, run: str, path: Path, folder: Path, progress: Progress
) -> list[Path]:
    run_folder.make_output(folder)
    files = []
    records = run_folder.records_of(path)
    if records:
        draw_curves([Curve.of(run, records)], folder / run_folder.CURVES, progress=progress)
        files.append(folder / run_folder.CURVES)
    result, confusion = evaluated.result, folder / run_folder.CONFUSION
    draw_confusion(result.per_class, result.confused, confusion, progress=progress)
    return [*files, confusion]


def _page(evaluated: Evaluated, run: str, path: Path, target: Path, progress: Progress) -> Path:
    result, metadata = evaluated.result, evaluated.opened.metadata
    config = metadata.config
    spec = ModelSpec(
        metadata.model_name, config.model.weights, metadata.build_flags, metadata.preprocessing
    )
    plan = make_plan(config, len(metadata.class_names), spec=spec)
    freeze = make_freeze_report(plan, config, split=evaluated.opened.engine.split)
    wrong = _mistakes(evaluated)
    verdict, notes = _verdict(evaluated, progress)
    facts = Facts(
        run=run,
        result=replace(result, checkpoint=path.name),
        freeze=freeze,
        epoch=metadata.epoch,
        monitor=config.train.monitor,
        records=run_folder.records_of(path),
        mistakes=_drawn(evaluated, wrong, progress, heat=WITH_HEAT),
        uncertain=_drawn(evaluated, _least_certain(evaluated), progress, heat=0),
        num_mistakes=sum(pair.count for pair in result.confused),
        verdict=verdict,
        notes=notes,
        config=to_yaml(config),
        rerun=_rerun(path.parent / run_folder.CONFIG, config.output_dir),
        chosen_on_these=result.split == "val" and result.data == config.data.root,
        versions=metadata.versions | {"page": versions()["finetune"]},
        stages=config.stages,
    )
    write_text(target, render_page(facts))
    return target


def _rerun(config: Path, output_dir: str) -> str:
    """The command that trains the same again; of a checkpoint that stands alone, from the config
    that the page shows."""
    if exists(config):
        return run_folder.rerun_command(config, output_dir)
    command = run_folder.rerun_command(Path(run_folder.CONFIG), output_dir)
    return f"# with the config below saved as {run_folder.CONFIG}\n{command}"


def _mistakes(evaluated: Evaluated) -> list[int]:
    """Positions: the highest loss first, then one of each confused pair in turn."""
    labels, predicted = evaluated.labels, evaluated.predicted
    losses = evaluated.scored.losses
    wrong = (predicted != labels).nonzero()[:, 0]
    order: list[int] = wrong[losses[wrong].argsort(descending=True, stable=True)].tolist()
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


def _least_certain(evaluated: Evaluated) -> list[int]:
    two = evaluated.scored.probabilities.topk(2, dim=1).values
    margins = two[:, 0] - two[:, 1]
    chosen: list[int] = margins.argsort(stable=True)[:UNCERTAIN].tolist()
    return chosen


def _drawn(
    evaluated: Evaluated, positions: Sequence[int], progress: Progress, *, heat: int
) -> list[Picture]:
    """Photos as small pictures; with the first of them, where the network looks."""
    images = evaluated.images
    photos = list(_photos(evaluated, positions, progress))
    predicted = evaluated.predicted[list(positions)].tolist()
    heats: list[str | None] = [None] * len(photos)
    if heat and photos:
        opened = evaluated.opened
        model = opened.model.eval()
        first = looked_at(model, photos[:heat], predicted[:heat], opened.metadata.preprocessing)
        heats[: len(first)] = first
    return [
        Picture(
            path=_shown(below(images.paths[at], evaluated.base)),
            true=images.class_names[images.labels[at]],
            predicted=images.class_names[label],
            probability=float(evaluated.scored.probabilities[at, label]),
            photo=data_url(photo),
            heat=hot,
        )
        for at, label, photo, hot in zip(positions, predicted, photos, heats, strict=True)
    ]


def _photos(evaluated: Evaluated, positions: Sequence[int], progress: Progress) -> Iterator[Tensor]:
    for at in progress.track(positions, "pictures", total=len(positions)):
        path = evaluated.images.paths[at]
        try:
            yield read_photo(path, evaluated.opened.metadata.preprocessing.levels)
        except Exception as error:  # it was there when it was scored, or its features were kept
            raise unreadable([Unreadable.because(path, error)]) from error


def _shown(path: str) -> str:
    """A path as text: bytes that are not UTF-8 cannot stand in a page."""
    return path.encode("utf-8", "backslashreplace").decode()


def _verdict(evaluated: Evaluated, progress: Progress) -> tuple[str, list[str]]:
    """What a quick look at training and validation images says."""
    config = evaluated.opened.metadata.config
    try:
        found = find_train_val(config.data, seed=config.seed, progress=progress)
        checked = quick_check(
            found.train, found.val, on_unreadable="skip", base=found.base, progress=progress
        )
    except FinetuneError as error:
        return f"The run's own data could not be looked at: {_shown(str(error))}", []
    train, val = checked.parts
    return (
        f"{len(train):,} training and {len(val):,} validation images of "
        f"{len(train.class_names)} classes; {_shown(checked.verdict)}",
        [_shown(note) for note in found.notes],
    )
