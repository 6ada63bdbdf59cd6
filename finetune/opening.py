"""A checkpoint, opened: the very network that was trained, split and in its form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.checkpoint import Metadata
from finetune.data.images import Images
from finetune.engine import Engine, build_engine
from finetune.errors import CheckpointError, ConfigError
from finetune.model import rebuild, rebuild_skeleton
from finetune.planning import apply_freeze
from finetune.progress import Progress
from finetune.proof import take_proof
from finetune.runtime import make_deterministic, select_device, use_one_heap
from finetune.train_mode import set_train_mode


@dataclass(frozen=True)
class Opened:
    """What computes logits: ``eval`` and ``predict`` share it, and with it their results.

    Attributes:
        model: Whole; its live modules are also the engine's.
    """

    metadata: Metadata
    model: nn.Module
    engine: Engine


def open_network(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    images: Images,
    *,
    known: bool,
    progress: Progress,
) -> Opened:
    """Build the network of a checkpoint as training built it.

    Args:
        path: For messages.
        images: A few of them are decoded where forms of arithmetic have to be timed.
        known: Hash what is frozen, so that stored features are found again.

    Raises:
        CheckpointError: tensors and metadata do not agree.
    """
    use_one_heap()
    device = _device(metadata, progress)
    make_deterministic(device)
    model = load_network(path, state, metadata)
    apply_freeze(model, frozenset(metadata.freeze_plan.names))
    updates = metadata.config.freeze.norm_stats == "update"
    frozen = take_proof(model, update_norm_stats=updates).sha256 if known else {}
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)  # the cut is made where training made it
    engine = build_engine(
        model,
        metadata.config,
        metadata.preprocessing,
        images,
        frozen=frozen,
        device=device,
        progress=progress,
    )
    return Opened(metadata, model, engine)


def load_network(path: Path, state: dict[str, Tensor], metadata: Metadata) -> nn.Module:
    """The whole network with its trained tensors, on the CPU.

    Raises:
        CheckpointError: tensors and metadata do not agree.
    """
    described = metadata.model_name, len(metadata.class_names), metadata.build_flags
    # Before any memory is taken for what the file claims.
    misfit = _misfit(state, rebuild_skeleton(*described).state_dict())
    if misfit:
        raise CheckpointError(
            f"{path}: damaged: its tensors do not fit {metadata.model_name} with "
            f"{len(metadata.class_names)} classes: {misfit}"
        )
    model = rebuild(*described)
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # mnasnet asks for its modules' versions
        raise CheckpointError(
            f"{path}: damaged: {metadata.model_name} does not take its tensors"
        ) from error
    return model


def _misfit(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first tensor that is not as the network has it, or holds what is no number."""
    for name, like in expected.items():
        tensor = state.get(name)
        if not isinstance(tensor, Tensor):
            return f"{name} is missing"
        if tensor.shape != like.shape:
            return f"{name} is of shape {tuple(tensor.shape)} instead of {tuple(like.shape)}"
        if tensor.dtype != like.dtype:
            return f"{name} is {_kind(tensor)} instead of {_kind(like)}"
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(torch.aminmax(tensor))
            if not bool(torch.isfinite(ends).all()):
                return f"{name} holds what is no finite number"
    strange = next((name for name in state if name not in expected), None)
    return None if strange is None else f"{strange!r} is no part of it"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
