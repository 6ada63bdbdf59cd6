"""``finetune eval``: a checkpoint's figures on a split, by the code path that training used."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from finetune.checkpoint import Metadata, load_checkpoint
from finetune.data.images import Images
from finetune.data.loading import resolve_workers
from finetune.data.quick_check import dropping_unreadable, quick_check
from finetune.data.sources import find_split
from finetune.data.views import Views
from finetune.engine import build_engine, make_source
from finetune.errors import CheckpointError, ConfigError
from finetune.evaluate import Evaluation, evaluate
from finetune.model import rebuild
from finetune.planning import apply_freeze
from finetune.progress import Progress, Silent
from finetune.proof import take_proof
from finetune.results import ClassScore, EvalResult
from finetune.runtime import make_deterministic, select_device, use_one_heap
from finetune.train_mode import set_train_mode


def evaluate_checkpoint(
    path: Path,
    *,
    data: str | None = None,
    split: str = "val",
    progress: Progress | None = None,
) -> EvalResult:
    """Score a checkpoint.

    Args:
        data: Another folder than the one it was trained from: of splits, or of classes.
        split: train, val or test.

    Raises:
        CheckpointError, DataError.
    """
    shown = progress or Silent()
    state, metadata = load_checkpoint(path)
    return dropping_unreadable(
        lambda: _evaluate(path, state, metadata, data, split, shown),
        on_unreadable=metadata.config.data.on_unreadable,
        progress=shown,
    )


def _evaluate(
    path: Path,
    state: dict[str, torch.Tensor],
    metadata: Metadata,
    data: str | None,
    split: str,
    progress: Progress,
) -> EvalResult:
    images = find_split(
        metadata.config.data,
        split,
        class_names=metadata.class_names,
        seed=metadata.config.seed,
        root=data,
        progress=progress,
    )
    checked = quick_check(
        images,
        on_unreadable=metadata.config.data.on_unreadable,
        base=Path(data or metadata.config.data.root),
        progress=progress,
    )
    if checked.skipped:
        progress.warn(checked.verdict)
    (images,) = checked.parts
    make_deterministic()
    use_one_heap()
    device = _device(metadata, progress)
    model = load_network(path, state, metadata)
    apply_freeze(model, frozenset(metadata.freeze_plan.names))
    updates = metadata.config.freeze.norm_stats == "update"
    proof = take_proof(model, update_norm_stats=updates)
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)  # the cut is made where training made it
    engine = build_engine(
        model,
        metadata.config,
        metadata.preprocessing,
        images,
        frozen=proof.sha256,
        device=device,
        progress=progress,
    )
    start = time.perf_counter()
    source = make_source(
        engine,
        metadata.config,
        images,
        views=Views.of("none"),
        workers=resolve_workers("auto", images, device),
        shuffle=False,
        what=split,
        progress=progress,
    )
    tracked = progress.track(source.epoch(), f"evaluate {split}", total=len(source))
    evaluation = evaluate(engine.live, tracked, num_classes=len(metadata.class_names))
    result = _result(path, metadata, images, evaluation, data, split)
    # From files to figures, decoding and features included.
    images_per_s = result.num_images / (time.perf_counter() - start)
    return replace(result, images_per_s=images_per_s, features_from_earlier_run=source.from_earlier)


def load_network(path: Path, state: dict[str, torch.Tensor], metadata: Metadata) -> nn.Module:
    """The very network that was trained.

    Raises:
        CheckpointError: tensors and metadata do not agree.
    """
    model = rebuild(metadata.model_name, len(metadata.class_names), metadata.build_flags)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: damaged: its tensors do not fit {metadata.model_name} with "
            f"{len(metadata.class_names)} classes"
        ) from error
    return model


def _device(metadata: Metadata, progress: Progress) -> torch.device:
    try:
        return select_device(metadata.config.runtime.device)
    except ConfigError:
        device = select_device("auto")
        progress.warn(
            f"trained on {metadata.config.runtime.device}, evaluated on {device.type}: "
            "figures may differ in the last digits"
        )
        return device


def _result(
    path: Path,
    metadata: Metadata,
    images: Images,
    evaluation: Evaluation,
    data: str | None,
    split: str,
) -> EvalResult:
    per_class = tuple(
        ClassScore(name, count, correct / count if count else None)
        for name, (correct, count) in zip(images.class_names, evaluation.per_class, strict=True)
    )
    return EvalResult(
        checkpoint=str(path),
        model=metadata.model_name,
        data=data or metadata.config.data.root,
        split=split,
        num_images=evaluation.num_images,
        top1=evaluation.top1,
        balanced_accuracy=evaluation.balanced_accuracy,
        top5=evaluation.top5,
        loss=evaluation.loss,
        per_class=per_class,
        images_per_s=evaluation.images_per_s,
        features_from_earlier_run=False,
    )
