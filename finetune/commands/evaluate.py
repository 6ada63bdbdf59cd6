"""``finetune eval``: a checkpoint's figures on a split, by the code path that training used."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune import run_folder
from finetune.checkpoint import Metadata, load_checkpoint, replace_metadata
from finetune.config_data import DataConfig
from finetune.data.fingerprint import sha256_of_images
from finetune.data.holdout import groups_of, keys_of
from finetune.data.images import Images
from finetune.data.levels import warn_of_levels
from finetune.data.quick_check import dropping_unreadable, quick_check
from finetune.data.sources import find_known
from finetune.data.views import Views
from finetune.data.workers import resolve_workers
from finetune.engine import make_source
from finetune.errors import ConfigError, DataError, OutputError, UnknownClassError
from finetune.eval_results import EvalResult
from finetune.evaluate import evaluate
from finetune.files import write_csv, write_text
from finetune.opening import Opened, open_network
from finetune.predictions import HEADER, rows
from finetune.progress import Progress, Silent
from finetune.report.json_text import to_json
from finetune.scoring import Scored, score
from finetune.temperature import fit_temperature

_NOT_ON = {
    "test": "on test the figures would no longer be of unseen images; use --split val",
    "train": "training images are known by heart, so that a temperature fitted on them would call "
    "later ones too certain; use --split val",
}


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with all that it went by.

    Attributes:
        base: The folder that paths are shown relative to.
        logits: ``(N, classes)`` float32, on the CPU, without any temperature.
    """

    opened: Opened
    images: Images
    base: Path
    logits: Tensor
    scored: Scored
    result: EvalResult

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64."""
        return torch.tensor(self.images.labels, dtype=torch.int64)

    @property
    def predicted(self) -> Tensor:
        """``(N,)`` int64."""
        return self.logits.argmax(dim=1)


def evaluate_checkpoint(
    path: Path,
    *,
    data: str | None = None,
    split: str = "val",
    output: Path | None = None,
    calibrate: bool = False,
    ignore_unknown: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Score a checkpoint, and write ``predictions.csv`` and ``metrics.json``.

    Args:
        data: Another folder than the one it was trained from: of splits, or of classes.
        split: train, val or test.
        output: Where to write; by default beside the checkpoint.
        calibrate: Fit a temperature on these images and store it in the checkpoint.
        ignore_unknown: Leave out images of classes that training does not know.

    Raises:
        CheckpointError, DataError, OutputError.
    """
    progress = progress or Silent()
    evaluated = compute(
        path,
        data=data,
        split=split,
        calibrate=calibrate,
        ignore_unknown=ignore_unknown,
        progress=progress,
    )
    return write_files(evaluated, output, path.parent, progress)


def compute(
    path: Path,
    *,
    data: str | None = None,
    split: str = "val",
    calibrate: bool = False,
    ignore_unknown: bool = False,
    if_unknown: str = "--ignore-unknown leaves their images out.",
    progress: Progress,
) -> Evaluated:
    """The figures with logits, images and network, nothing written but a fitted temperature.

    Args:
        if_unknown: What to do about ``data`` with classes that training does not know.
    """
    if calibrate and split != "val":
        raise ConfigError(f"eval: --calibrate fits on what it scores: {_NOT_ON[split]}")
    state, metadata = load_checkpoint(path)
    try:
        return dropping_unreadable(
            lambda: _compute(
                path, state, metadata, data, split, calibrate, ignore_unknown, progress
            ),
            on_unreadable=metadata.config.data.on_unreadable,
            progress=progress,
        )
    except UnknownClassError as error:
        if data is None or ignore_unknown:
            raise
        raise UnknownClassError(f"{error} {if_unknown}") from error


def _compute(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    data: str | None,
    split: str,
    calibrate: bool,
    ignore_unknown: bool,
    progress: Progress,
) -> Evaluated:
    images, ignored = _images(metadata, data, split, ignore_unknown, progress)
    opened = open_network(path, state, metadata, images, known=True, progress=progress)
    start = time.perf_counter()
    source = make_source(
        opened.engine,
        metadata.config,
        images,
        views=Views.of("none"),
        workers=resolve_workers(
            "auto",
            images,
            opened.engine.device,
            batch_bytes=metadata.config.data.batch_size * opened.engine.computation.pixel_bytes,
        ),
        shuffle=False,
        what=split,
        progress=progress,
    )
    kept: list[Tensor] = []
    tracked = progress.track(source.epoch(), f"evaluate {split}", total=len(source))
    classes = len(metadata.class_names)
    evaluation = evaluate(opened.engine.live, tracked, num_classes=classes, keep=kept)
    # From files to figures, decoding and features included.
    images_per_s = evaluation.num_images / (time.perf_counter() - start)
    logits, labels = torch.cat(kept), torch.tensor(images.labels, dtype=torch.int64)
    base = data or metadata.config.data.root
    fitted = False
    if calibrate or metadata.temperature is not None:
        these = sha256_of_images(images, [Path(metadata.config.data.root), Path(base)])
        if calibrate:
            metadata = _calibrate(path, metadata, logits, labels, these, progress)
        fitted = metadata.temperature_images == these
    scored = score(
        logits,
        labels,
        metadata.class_names,
        temperature=metadata.temperature,
        fitted=fitted,
        groups=_groups(images, metadata.config.data, data),
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
        features_from_earlier_run=source.from_earlier,
        ignored=ignored,
        files=(),
    )
    opened = replace(opened, metadata=metadata)
    return Evaluated(opened, images, Path(base), logits, scored, result)


def _calibrate(
    path: Path, metadata: Metadata, logits: Tensor, labels: Tensor, these: str, progress: Progress
) -> Metadata:
    """Fit a temperature, and store it with what it was fitted on."""
    if torch.equal(logits.argmax(dim=1), labels):
        raise DataError(
            f"eval: --calibrate: all of these {len(labels):,} images are recognised, so that no "
            "temperature is best: the lower, the likelier the labels. Nothing was stored; fit on "
            "more images, or harder ones, with --data"
        )
    temperature = fit_temperature(logits, labels)
    update = {"temperature": temperature, "temperature_images": these}
    metadata = metadata.model_copy(update=update)
    replace_metadata(path, metadata)
    progress.say(f"{path}: temperature {temperature:.4g} stored; predictions divide by it")
    return metadata


def _images(
    metadata: Metadata, data: str | None, split: str, ignore_unknown: bool, progress: Progress
) -> tuple[Images, int]:
    """The images of a split, and how many of unknown classes were left out."""
    config = metadata.config
    images, ignored = find_known(
        config.data,
        split,
        class_names=metadata.class_names,
        seed=config.seed,
        root=data,
        ignore_unknown=ignore_unknown,
        progress=progress,
    )
    if ignored:
        progress.warn(f"{ignored:,} images of classes that training does not know are left out")
    checked = quick_check(
        images,
        on_unreadable=config.data.on_unreadable,
        base=Path(data or config.data.root),
        progress=progress,
    )
    if checked.skipped:
        progress.warn(checked.verdict)
    warn_of_levels(metadata.preprocessing.levels, checked.parts[0].paths, progress)
    return checked.parts[0], ignored


def _groups(images: Images, config: DataConfig, data: str | None) -> tuple[str, ...]:
    """What each image belongs to, where the data says so."""
    if images.groups or not config.group_pattern or data is not None:
        return images.groups
    base = Path(config.root)
    return groups_of(keys_of(images.paths, base), config.group_pattern, base=base)[0]


def write_files(
    evaluated: Evaluated, output: Path | None, beside: Path, progress: Progress
) -> EvalResult:
    """Write ``predictions.csv`` and ``metrics.json``, and return the result with their names.

    Raises:
        OutputError: they cannot be written where ``output`` says; beside the checkpoint that is a
            warning alone.
    """
    folder = beside if output is None else output
    predictions, metrics = folder / run_folder.PREDICTIONS, folder / run_folder.EVALUATION
    result = replace(evaluated.result, files=(str(predictions), str(metrics)))
    try:
        run_folder.make_output(folder)
        table = rows(evaluated.images, evaluated.logits, evaluated.scored, base=evaluated.base)
        write_csv(predictions, HEADER, table)
        write_text(metrics, to_json(result) + "\n")
    except OutputError as error:
        if output is not None:
            raise
        progress.warn(f"{error}; --output DIR names another place")
        return evaluated.result
    return result
