"""Checkpoint of a small network without training, for tests of reading and writing."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import Frozen, Metadata, save_checkpoint
from finetune.config.schema import Config
from finetune.core.device import versions
from finetune.freezing.plan import make_plan, resolve_config
from finetune.models.build import build_untrained

CLASSES = ("class_0", "class_1")


def small_checkpoint(config: Config) -> tuple[dict[str, Tensor], Metadata]:
    """What `save_checkpoint` takes, for the network of a config, untrained."""
    plan = make_plan(config, len(CLASSES))
    model = build_untrained(plan.spec, len(CLASSES), seed=0)
    resolved = resolve_config(config, plan, device="cpu", workers=0, policy="flip")
    plain = {"precision": "float32", "memory_format": "contiguous"}
    runtime = plain | {f"live_{key}": value for key, value in plain.items()}
    resolved = resolved.with_values(
        {"features.cache": "off", **{f"runtime.{key}": value for key, value in runtime.items()}}
    )
    metadata = Metadata(
        model_name=plan.spec.name,
        build_flags=plan.spec.build_flags,
        class_names=CLASSES,
        preprocessing=plan.spec.preprocessing,
        config=resolved,
        freeze_plan=Frozen(
            patterns=resolved.freeze.patterns,
            names=tuple(d.name for d in plan.freeze.decisions if d.frozen),
        ),
        epoch=1,
        metrics={"top1": 0.5, "loss": 0.7, "num_images": 10},
        versions=versions(),
    )
    return model.state_dict(), metadata


def save_small(path: Path, config: Config) -> Path:
    """Write such a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, *small_checkpoint(config))
    return path


def few_tensors(count: int, value: float) -> OrderedDict[str, Tensor]:
    """A state that is written in few operations; its bytes depend on ``value``."""
    return OrderedDict((f"layer{i}.weight", torch.full((32, 33), value)) for i in range(count))
