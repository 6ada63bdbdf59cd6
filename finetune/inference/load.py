"""Load the network of a checkpoint, with the split and compute format of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.checkpoints.checkpoint import Frozen, Metadata
from finetune.checkpoints.limits import Limits
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config
from finetune.core.device import make_deterministic, select_device, versions
from finetune.core.errors import CheckpointError, ConfigError
from finetune.core.memory import use_one_heap
from finetune.core.reporter import Reporter
from finetune.core.text import first_few
from finetune.data.images import Images
from finetune.features.cache_policy import decide_cache
from finetune.features.engine import Engine, Network, build_engine
from finetune.features.opening import layout_of
from finetune.freezing.frozen_hashes import hash_frozen
from finetune.freezing.plan import apply_freeze
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import build_untrained, rebuild, rebuild_skeleton, resolve_model
from finetune.models.pretrained import load_pretrained
from finetune.models.weight_files import is_left_out


@dataclass(frozen=True)
class LoadedNetwork:
    """A loaded network and its engine, shared by ``eval`` and ``predict``.

    Attributes:
        metadata: Metadata of the checkpoint.
        model: Complete network; its trainable modules are shared with the engine.
        engine: Engine that computes logits with the model.
        limits: Limits of the network's answers; None if the checkpoint has none.
    """

    metadata: Metadata
    model: nn.Module
    engine: Engine
    limits: Limits | None = None


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


def open_pretrained(
    config: Config, images: Images, *, levels: int | None, num_photos: int, reporter: Reporter
) -> LoadedNetwork:
    """Build a network with its pretrained weights, and with a new head that was not trained.

    All but the head is frozen, whatever the config trains. Features are therefore those of a run
    that trains the head alone.

    Args:
        images: Training images, of which a few are decoded if compute formats must be timed.
        levels: White level of images with more than 8 bits per channel.
        num_photos: Number of photos whose features may be kept.

    Raises:
        ConfigError: a part of the network has no weights.
        ModelError: the weights cannot be read, or do not fit.
    """
    use_one_heap()
    device = select_device(config.runtime.device)
    make_deterministic(device)
    # Nothing is trained: any values will do for the sections that training alone reads.
    planned = config.resolved_as(
        PlannedConfig,
        {
            "recipe": None,
            "stages": (),
            "model.aux_heads": False,
            "train.epochs": 1,
            "train.budget": None,
            "optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 0.0},
            "schedule.warmup_epochs": 0.0,
        },
    )
    spec = resolve_model(config.model, fit=config.data.fit).with_levels(levels)
    model = build_untrained(spec, len(images.class_names), seed=config.seed)
    if spec.weights == "none":
        reporter.warn("model.weights none: embeddings are those of a network of random weights")
    for note in filter(None, (spec.note, *load_pretrained(model, spec))):
        reporter.say(note)
    heads = tuple(f"{path}." for path in spec.heads)
    frozen = [name for name, _ in model.named_parameters() if not name.startswith(heads)]
    random = [name for name in frozen if is_left_out(name, spec.leave_out)]
    if random:
        raise ConfigError(
            f"{first_few(random)} would be random, and so would the embeddings",
            kind="config.conflict",
            key="model.leave_out",
            to_do="train a run, and use its embeddings",
        )
    apply_freeze(model, frozen)
    sha256 = hash_frozen(model).sha256
    model.to(device)
    set_train_mode(model)  # gives the split point of a run that trains the head
    network = Network(name=spec.name, model=model, preprocessing=spec.preprocessing, frozen=sha256)
    engine = build_engine(network, planned, images, device=device, reporter=reporter)
    cache = decide_cache(
        config.features,
        engine.extractor,
        num_photos * layout_of(engine.extractor).num_bytes,
        multiply_adds=engine.prefix_multiply_adds,
        reporter=reporter,
    )
    metadata = Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=images.class_names,
        preprocessing=spec.preprocessing,
        config=planned.with_values({"features.cache": cache}),
        freeze_plan=Frozen(patterns=("*",), names=tuple(frozen)),
        epoch=0,
        metrics={},
        versions=versions(),
    )
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
