"""``finetune eval``: metrics of a checkpoint on a split, computed as during training."""

from __future__ import annotations

import csv
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Metadata, load_checkpoint, replace_limits
from finetune.checkpoints.limits import Limits
from finetune.commands.fit_limits import limits_of
from finetune.config.data import DataConfig
from finetune.config.model_registry import family_of
from finetune.config.stages import epochs_of, stage_configs
from finetune.core.errors import ConfigError, DataError, OutputError, UnknownClassError
from finetune.core.files import exists, write_csv, write_text
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import plural
from finetune.data.checks.preflight import (
    copies_of_training,
    dropping_unreadable,
    preflight_check,
)
from finetune.data.fingerprint import sha256_of_images
from finetune.data.images import Images, TrainVal, below
from finetune.data.levels import warn_of_levels
from finetune.data.loading.views import Views
from finetune.data.loading.workers import resolve_workers
from finetune.data.sources.open import find_known, find_train_val
from finetune.data.splits.holdout import groups_of, keys_of
from finetune.features.both_views import averaging
from finetune.features.engine import Engine, Split, make_source
from finetune.inference.calibration import fit_temperature, probabilities
from finetune.inference.limits import has_limit, least_images
from finetune.inference.load import LoadedNetwork, open_network
from finetune.inference.prediction_rows import HEADER, rows
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import Scored, score
from finetune.report.json_text import to_json
from finetune.results.caveats import Caveat, ScoredPhotos, caveats_of
from finetune.results.evaluation import EvalResult
from finetune.training.evaluate import evaluate

_NOT_ON = {
    "test": "a temperature fitted on the test images would bias their own evaluation",
    "train": "the network has memorized the training images, so a temperature fitted on them would "
    "be overconfident on new images",
}


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation.

    Attributes:
        data: Folder of splits or of classes to use instead of the training data.
        split: Name of the split: train, val or test.
        calibrate: Whether to fit a temperature and the limits of the answers on these images and
            store them in the checkpoint.
        ignore_unknown: Whether to skip images of classes that the checkpoint does not know.
        embeddings: Whether to keep the inputs of the head, from the same forward pass.
    """

    data: str | None = None
    split: str = "val"
    calibrate: bool = False
    ignore_unknown: bool = False
    embeddings: bool = False


@dataclass(frozen=True)
class Evaluated:
    """An evaluation result with the network, images and logits that it was computed from.

    Attributes:
        base: Folder that paths are shown relative to.
        logits: ``(N, classes)`` float32 on the CPU, not scaled by a temperature.
        embeddings: Inputs of the head, ``(N, d)`` float32 on the CPU; None unless asked for.
    """

    opened: LoadedNetwork
    images: Images
    base: Path
    options: EvalOptions
    logits: Tensor
    scored: Scored
    result: EvalResult
    embeddings: Tensor | None = None

    def name_of(self, name: str) -> str:
        """Return the name of a file of this evaluation, such as ``metrics-test.json``."""
        checkpoint = Path(self.result.checkpoint)
        split, data = self.options.split, self.options.data
        return run_dir.of_evaluation(name, checkpoint, split=split, data=data)

    @property
    def labels(self) -> Tensor:
        """True class indices, ``(N,)`` int64."""
        return torch.tensor(self.images.labels, dtype=torch.int64)

    @property
    def predicted(self) -> Tensor:
        """Predicted class indices, ``(N,)`` int64."""
        return self.logits.argmax(dim=1)


def evaluate_checkpoint(
    path: Path,
    options: EvalOptions | None = None,
    *,
    output: Path | None = None,
    reporter: Reporter | None = None,
) -> EvalResult:
    """Score a checkpoint, and write ``predictions.csv`` and ``metrics.json``.

    Args:
        output: Output folder; by default the folder of the checkpoint.

    Raises:
        CheckpointError, DataError, OutputError.
    """
    reporter = reporter or SilentReporter()
    evaluated = compute(path, options or EvalOptions(), reporter=reporter)
    return write_files(evaluated, output, path.parent, reporter)


def compute(
    path: Path,
    options: EvalOptions,
    *,
    if_unknown: str = "To leave out the images of unknown classes, add --ignore-unknown.",
    reporter: Reporter,
) -> Evaluated:
    """Evaluate a checkpoint without writing files; what is fitted is stored in it.

    Args:
        if_unknown: Advice on the last line of the error about unknown classes in ``data``.
    """
    if options.calibrate and options.split != "val":
        raise ConfigError(
            _NOT_ON[options.split],
            kind="config.conflict",
            source="eval",
            key="--calibrate",
            to_do="use --split val",
        )
    reporter.status("loading the checkpoint")
    state, metadata = load_checkpoint(path)
    try:
        return dropping_unreadable(
            lambda _: _compute(path, state, metadata, options, reporter),
            on_unreadable=metadata.config.data.on_unreadable,
            reporter=reporter,
        )
    except UnknownClassError as error:
        if options.data is None or options.ignore_unknown:
            raise
        raise error.at(also=if_unknown) from error


def _compute(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    options: EvalOptions,
    reporter: Reporter,
) -> Evaluated:
    reporter.status("checking the images")
    drawn = _split_of_run(path)
    images, ignored, split, found = _images(drawn, metadata, options, reporter)
    if metadata.config.data.corrections is not None and options.data is None:
        found = found or _train_val(metadata)
    base = options.data or metadata.config.data.root
    reporter.status("loading the network")
    opened = open_network(path, state, metadata, images, reporter=reporter)
    start = time.perf_counter()
    source = make_source(
        opened.engine,
        metadata.config,
        Split(
            images,
            views=Views.of("none"),
            shuffle=False,
            what=options.split,
            both_views=metadata.config.model.average_mirror,
        ),
        workers=resolve_workers(
            "auto",
            images,
            opened.engine.device,
            batch_bytes=metadata.config.data.batch_size * opened.engine.extractor.pixel_bytes,
        ),
        reporter=reporter,
    )
    if source.counts is not None:
        reporter.say(source.counts.in_words)
    kept: list[Tensor] = []
    tracked = reporter.track(source.epoch(), f"evaluate {split or base}", total=len(source))
    classes = len(metadata.class_names)
    embeds = options.embeddings or options.calibrate
    embedder = _Embedder(opened.engine, metadata) if embeds else None
    model = embedder or averaging(opened.engine.trainable_part, metadata.config.model)
    evaluation = evaluate(model, tracked, num_classes=classes, keep=kept)
    # End to end: includes decoding and feature computation.
    images_per_s = evaluation.num_images / (time.perf_counter() - start)
    logits, labels = torch.cat(kept), torch.tensor(images.labels, dtype=torch.int64)
    embeddings = None if embedder is None else torch.cat(embedder.kept)
    fitted = False
    if options.calibrate or metadata.temperature is not None:
        these = sha256_of_images(images, [Path(metadata.config.data.root), Path(base)])
        if options.calibrate:
            assert embeddings is not None
            answers = _Answers(images, logits, labels, embeddings)
            train = partial(_training_images, drawn, metadata, found)
            metadata = _calibrate(path, opened, answers, these, train, reporter)
        fitted = metadata.temperature_images == these
    reporter.status("computing the confidence intervals")
    scored = score(
        logits,
        labels,
        metadata.class_names,
        temperature=metadata.temperature,
        fitted=fitted,
        groups=_groups(images, metadata.config.data, options.data),
    )
    result = EvalResult(
        checkpoint=str(path),
        model=metadata.model_name,
        data=base,
        split=split,
        num_images=evaluation.num_images,
        top1=evaluation.top1,
        balanced_accuracy=evaluation.balanced_accuracy,
        top5=evaluation.top5,
        loss=evaluation.loss,
        macro=scored.macro,
        auroc=scored.auroc,
        intervals=scored.intervals,
        interval_method=scored.interval_method,
        calibration=scored.calibration,
        per_class=scored.per_class,
        confused=scored.confused,
        confusion=scored.confusion,
        images_per_s=images_per_s,
        features=source.counts,
        features_from_earlier_run=source.counts is not None and not source.counts.computed,
        ignored=ignored,
        files=(),
        next=(_report_command(path, options),),
        caveats=_caveats(
            ScoredPhotos(
                noun := _NOUNS[options.split] if options.data is None else "",
                counts=dict(zip(images.class_names, images.counts(), strict=True)),
                corrected=0 if found is None else found.num_relabelled(images),
                chose=_chosen_on(path, metadata) if noun == "validation" else (),
                fitted_temperature=fitted,
            ),
            images,
            logits.argmax(dim=1) == labels,
            train=lambda: _training_images(drawn, metadata, found),
            reporter=reporter,
        ),
    )
    opened = replace(opened, metadata=metadata)
    return Evaluated(opened, images, Path(base), options, logits, scored, result, embeddings)


def _report_command(path: Path, options: EvalOptions) -> str:
    """Return the command that writes the HTML report of an evaluation."""
    command = run_dir.report_command(run_dir.run_of(path))
    if options.data is not None:
        command += f" --data {shlex.quote(options.data)}"
    return command if options.split == "val" else f"{command} --split {options.split}"


_NOUNS = {"train": "training", "val": "validation", "test": "test"}


def _caveats(
    photos: ScoredPhotos,
    images: Images,
    right: Tensor,
    *,
    train: Callable[[], Images],
    reporter: Reporter,
) -> tuple[Caveat, ...]:
    """Return what limits what the metrics say about new photos.

    Args:
        photos: What is known of the images without the training images.
        right: Whether each image was classified correctly.
        train: Function that returns the training images.
    """
    if photos.noun == "training":
        return caveats_of(photos)
    try:
        trained = train()
    except DataError as error:
        why = str(error).splitlines()[0].rstrip(".")
        return caveats_of(replace(photos, unchecked=why))
    copies = copies_of_training(trained, images, reporter)
    others = torch.ones(len(images), dtype=torch.bool)
    others[list(copies.leaked)] = False
    return caveats_of(
        replace(
            photos,
            leaked=len(copies.leaked),
            top1_without=right[others].float().mean().item() if others.any() else None,
            alike=len(copies.alike),
            in_two_classes=copies.in_two_classes,
        )
    )


def _chosen_on(path: Path, metadata: Metadata) -> tuple[str, ...]:
    """Return what was chosen by the validation accuracy of a checkpoint."""
    if path.name == run_dir.LAST:
        return ()
    recorded = run_dir.chosen_on_validation(path)
    return recorded or (("the epoch",) if epochs_of(stage_configs(metadata.config)) > 1 else ())


def _train_val(metadata: Metadata) -> TrainVal:
    """Return the training and validation images as they would be drawn now.

    Raises:
        DataError: As in `find_train_val`.
    """
    config = metadata.config
    return find_train_val(config.data, seed=config.seed, class_names=metadata.class_names)


def _training_images(
    drawn: Mapping[str, str], metadata: Metadata, found: TrainVal | None
) -> Images:
    """Return the images that a checkpoint was trained on, as far as they are still there.

    Args:
        drawn: As `_split_of_run` returns it.
        found: Images as they would be drawn now; None lists them.

    Raises:
        DataError: As in `find_train_val`.
    """
    found = found or _train_val(metadata)
    return _drawn_as(drawn, "train", found) if drawn else found.train


def _split_of_run(path: Path) -> dict[str, str]:
    """Return the split of each image if the run drew the splits, from ``split.csv``; else nothing.

    Drawn again, images may be in other splits as soon as one is added, moved or deleted.
    """
    file = path.parent / run_dir.SPLIT
    if not exists(file):
        return {}
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return {row["path"]: row["split"] for row in csv.DictReader(lines)}


def _drawn_as(drawn: Mapping[str, str], split: str, found: TrainVal) -> Images:
    """Return the images that the run had in a split, in its order, if they are still there."""
    both = replace(
        found.train,
        paths=found.train.paths + found.val.paths,
        labels=found.train.labels + found.val.labels,
        groups=found.train.groups + found.val.groups,
    )
    places = {below(image, found.base): at for at, image in enumerate(both.paths)}
    own = (name for name, its_split in drawn.items() if its_split == split)
    return both.subset([places[name] for name in own if name in places])


def _of_run(
    drawn: Mapping[str, str], split: str, now: Images, found: TrainVal, reporter: Reporter
) -> Images:
    """Return the images that the run had in a split, and warn if others are in it now.

    Raises:
        DataError: None of them is there any more.
    """
    own = _drawn_as(drawn, split, found)
    gone = sum(name == split for name in drawn.values()) - len(own)
    noun = _NOUNS[split]
    if not len(own):
        raise DataError(
            f"none of the {noun} images of this run is there any more",
            kind="data.no_images",
            path=found.base,
            to_do="name other images with --data",
        )
    if gone or set(own.paths) != {
        image for image in now.paths if below(image, found.base) in drawn
    }:
        reporter.warn(
            f"images were added, moved or deleted since the training: of its {len(own) + gone:,} "
            f"{noun} images {len(own):,} are still there, and no others are evaluated"
        )
    return own


class _Embedder(nn.Module):
    """Trainable part that keeps the inputs of its head; its logits are the same, bit for bit."""

    def __init__(self, engine: Engine, metadata: Metadata) -> None:
        super().__init__()
        part = engine.with_head_input(family_of(metadata.model_name).head)
        self.part = averaging(part, metadata.config.model)
        self.kept: list[Tensor] = []
        self._classes = len(metadata.class_names)

    def forward(self, *features: Tensor) -> Tensor:
        """Return the logits ``(N, classes)``, and keep the embeddings on the CPU."""
        output: Tensor = self.part(*features)
        # Copies, because a slice would keep the whole output in memory.
        self.kept.append(output[:, self._classes :].clone().cpu())
        return output[:, : self._classes].clone()


@dataclass(frozen=True)
class _Answers:
    """Answers of the network to the evaluated images."""

    images: Images
    logits: Tensor
    labels: Tensor
    embeddings: Tensor


def _calibrate(
    path: Path,
    opened: LoadedNetwork,
    answers: _Answers,
    these: str,
    train: Callable[[], Images],
    reporter: Reporter,
) -> Metadata:
    """Fit a temperature and the limits of the answers, and store them in the checkpoint.

    Args:
        these: Hash of the images.
        train: Function that returns the training images.
    """
    logits, labels, metadata = answers.logits, answers.labels, opened.metadata
    all_right = torch.equal(logits.argmax(dim=1), labels)
    if not all_right:
        update = {"temperature": fit_temperature(logits, labels), "temperature_images": these}
        metadata = metadata.model_copy(update=update)
    reporter.status("fitting the distance to the training photos")
    shares = probabilities(logits, metadata.temperature)
    limits = None
    try:
        limits = limits_of(
            Predictor(opened), train(), answers.embeddings, shares, answers.images.labels
        )
    except DataError as error:  # the run may come from another machine
        why = str(error).splitlines()[0].rstrip(".")
        reporter.warn(
            f"{path}: no limits stored, since the training photos cannot be listed: {why}"
        )
    replace_limits(path, metadata, limits)
    if not all_right:
        reporter.say(
            f"{path}: temperature {metadata.temperature:.4g} stored; predictions use it from now on"
        )
    if limits is not None:
        reporter.say(f"{path}: {_stored(limits)}")
    if all_right:
        raise DataError(
            f"all {len(labels):,} images are classified correctly, so the best temperature is 0 "
            "and no temperature was stored",
            kind="data.nothing_to_calibrate",
            source="eval",
            key="--calibrate",
            to_do="fit on more or harder images with --data",
        )
    return metadata


def _stored(limits: Limits) -> str:
    """Return which limits were stored."""
    record = limits.record
    if has_limit(record):
        return (
            f"limits stored; predict marks photos unlike the training photos (at most "
            f"{record.rate:.0%} of photos like them)"
        )
    return (
        f"limits stored, but {plural(record.images, 'photo')} are too few to mark photos unlike "
        f"the training photos: at least {least_images(1 - record.rate)} are needed"
    )


def _images(
    drawn: Mapping[str, str], metadata: Metadata, options: EvalOptions, reporter: Reporter
) -> tuple[Images, int, str | None, TrainVal | None]:
    """Return the images, the number of skipped images of unknown classes, and the split, if any.

    Where the run has drawn its splits, the last one is the images as they would be drawn now.
    """
    config = metadata.config
    images, ignored, split = find_known(
        config.data,
        options.split,
        class_names=metadata.class_names,
        seed=config.seed,
        root=options.data,
        ignore_unknown=options.ignore_unknown,
        reporter=reporter,
    )
    found = None
    if drawn and options.data is None and split in ("train", "val"):
        found = _train_val(metadata)
        images = _of_run(drawn, split, images, found, reporter)
    if ignored:
        reporter.warn(
            f"{ignored:,} images of classes that the network was not trained on are left out"
        )
    checked = preflight_check(
        images,
        on_unreadable=config.data.on_unreadable,
        base=Path(options.data or config.data.root),
        reporter=reporter,
    )
    if checked.skipped:
        reporter.warn(checked.verdict)
    warn_of_levels(metadata.preprocessing.levels, checked.parts[0].paths, reporter)
    return checked.parts[0], ignored, split, found


def _groups(images: Images, config: DataConfig, data: str | None) -> tuple[str, ...]:
    """Group of each image; empty if the data defines no groups."""
    if images.groups or not config.group_pattern or data is not None:
        return images.groups
    base = Path(config.root)
    return groups_of(keys_of(images.paths, base), config.group_pattern, base=base)[0]


def write_files(
    evaluated: Evaluated, output: Path | None, beside: Path, reporter: Reporter
) -> EvalResult:
    """Write ``predictions.csv`` and ``metrics.json``, and return the result with their paths.

    The names of both carry another split, folder or checkpoint: see `run_dir.of_evaluation`.

    Raises:
        OutputError: the files cannot be written to ``output``. If ``output`` is None, a failure
            is only a warning.
    """
    folder = beside if output is None else output
    predictions = folder / evaluated.name_of(run_dir.PREDICTIONS)
    metrics = folder / evaluated.name_of(run_dir.EVALUATION)
    result = replace(evaluated.result, files=(str(predictions), str(metrics)))
    try:
        run_dir.make_output(folder)
        table = rows(evaluated.images, evaluated.logits, evaluated.scored, base=evaluated.base)
        write_csv(predictions, HEADER, table)
        write_text(metrics, to_json(result) + "\n")
    except OutputError as error:
        if output is not None:
            raise
        reporter.warn(f"{error}; choose another folder with --output DIR")
        return evaluated.result
    return result
