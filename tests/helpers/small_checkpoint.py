"""Checkpoint of a small network without training, for tests of reading and writing."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import Frozen, Metadata, save_checkpoint
from finetune.config.data import FULL_RANGE
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.core.device import versions
from finetune.freezing.plan import Plan, make_plan
from finetune.models.build import build_untrained
from finetune.recipes.auto import plan_config

CLASSES = ("class_0", "class_1")


def resolved_for_tests(config: Config, plan: Plan) -> ResolvedConfig:
    """The config that a run on 100 images would save, in float32 and without a cache."""
    planned = plan_config(config, plan, num_train=100, class_names=CLASSES)
    plain = {"precision": "float32", "memory_format": "contiguous"}
    runtime = {"device": "cpu", "compile": "off", **plain}
    runtime |= {f"live_{key}": value for key, value in plain.items()}
    return planned.resolved_as(
        ResolvedConfig,
        {
            "model.weights": plan.spec.weights,
            "model.preprocessing": plan.spec.preprocessing.given(),
            "data.levels": FULL_RANGE,
            "data.workers": 0,
            "augment.policy": "flip",
            "features.cache": "off",
            "runtime": runtime,
        },
    )


def small_checkpoint(config: Config) -> tuple[dict[str, Tensor], Metadata]:
    """What `save_checkpoint` takes, for the network of a config, untrained."""
    plan = make_plan(config, len(CLASSES))
    model = build_untrained(plan.spec, len(CLASSES), seed=0)
    resolved = resolved_for_tests(config, plan)
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
