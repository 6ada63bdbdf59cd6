"""Load the network of a checkpoint, with the split and compute format of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.checkpoints.checkpoint import Metadata
from finetune.core.device import make_deterministic, select_device
from finetune.core.errors import CheckpointError, ConfigError
from finetune.core.memory import use_one_heap
from finetune.core.reporter import Reporter
from finetune.data.images import Images
from finetune.features.engine import Engine, Network, build_engine
from finetune.freezing.frozen_hashes import hash_frozen
from finetune.freezing.plan import apply_freeze
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import rebuild, rebuild_skeleton


@dataclass(frozen=True)
class LoadedNetwork:
    """A loaded network and its engine, shared by ``eval`` and ``predict``.

    Attributes:
        metadata: Metadata of the checkpoint.
        model: Complete network; its trainable modules are shared with the engine.
        engine: Engine that computes logits with the model.
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
    reporter: Reporter,
) -> LoadedNetwork:
    """Build the network and engine of a checkpoint as training built them.

    Args:
        path: Path of the checkpoint, used in messages.
        state: State dict of the checkpoint.
        metadata: Metadata of the checkpoint.
        images: Images of which a few are decoded if compute formats must be timed.

    Raises:
        CheckpointError: tensors and metadata do not match.
    """
    use_one_heap()
    device = _device(metadata, reporter)
    make_deterministic(device)
    model = load_network(path, state, metadata)
    apply_freeze(model, frozenset(metadata.freeze_plan.names))
    updates = metadata.config.freeze.norm_stats == "update"
    frozen = hash_frozen(model, update_norm_stats=updates).sha256
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)  # gives the split point of training
    network = Network(
        name=metadata.model_name,
        model=model,
        preprocessing=metadata.preprocessing,
        frozen=frozen,
    )
    engine = build_engine(network, metadata.config, images, device=device, reporter=reporter)
    return LoadedNetwork(metadata, model, engine)


def load_network(path: Path, state: dict[str, Tensor], metadata: Metadata) -> nn.Module:
    """Build the complete network on the CPU and load its trained tensors.

    Raises:
        CheckpointError: tensors and metadata do not match.
    """
    described = metadata.model_name, len(metadata.class_names), metadata.build_flags
    # Checked on the meta device, before memory is allocated for the network.
    misfit = _misfit(state, rebuild_skeleton(*described).state_dict())
    if misfit:
        raise CheckpointError(
            f"damaged: its tensors do not fit {metadata.model_name} with "
            f"{len(metadata.class_names)} classes: {misfit}",
            kind="checkpoint.damaged",
            path=path,
        )
    model = rebuild(*described)
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # mnasnet checks the version in the state dict
        raise CheckpointError(
            f"damaged: its tensors do not fit {metadata.model_name}",
            kind="checkpoint.damaged",
            path=path,
        ) from error
    return model


def _misfit(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """Describe the first tensor that does not fit the network or is not finite; None if all do."""
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
                return f"{name} contains a number that is not finite"
    strange = next((name for name in state if name not in expected), None)
    return None if strange is None else f"{strange!r} is unexpected"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _device(metadata: Metadata, reporter: Reporter) -> torch.device:
    try:
        return select_device(metadata.config.runtime.device)
    except ConfigError:
        device = select_device("auto")
        reporter.warn(
            f"trained on {metadata.config.runtime.device}, evaluated on {device.type}: "
            "results may differ in the last digits"
        )
        return device
