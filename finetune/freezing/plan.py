"""Freeze plan of a network and its cost, printed by ``freeze-report`` and applied by ``train``."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from finetune.config.augment import Policy
from finetune.config.schema import Config
from finetune.freezing.flops import Cost, measure_cost
from finetune.freezing.graph_split import WORTH_KEEPING_BYTES, find_split_point
from finetune.freezing.lora import plan_adapters
from finetune.freezing.optimizer_options import check_optimizer
from finetune.freezing.param_groups import check_groups
from finetune.freezing.patterns import FreezePlan, plan_freeze
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import ModelSpec, build_skeleton, check_input_size, resolve_model
from finetune.models.layer_depths import depths_of

FLOAT32_BYTES = 4  # per float32 value


@dataclass(frozen=True)
class Plan:
    """Network to train: its spec, a skeleton on the meta device, and the frozen parameters."""

    spec: ModelSpec
    freeze: FreezePlan
    skeleton: nn.Module
    """Network on the meta device; weights with an adapter require gradients, as they change."""
    num_classes: int
    adapters: dict[str, int] = field(default_factory=dict)
    """Number of adapter parameters by name of the adapted weight."""

    @cached_property
    def cost(self) -> Cost:
        """Multiply-adds per image, and the module at which the backward pass ends."""
        return measure_cost(self.skeleton, crop=self.spec.preprocessing.crop)

    @cached_property
    def depths(self) -> dict[str, int]:
        """Layers between each parameter and the head; the depth of an adapter is its weight's."""
        depths = depths_of(self.skeleton, self.spec.family)
        return depths | {f"{n}.lora_{letter}": depths[n] for n in self.adapters for letter in "AB"}

    @cached_property
    def moving(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trained parameters, with two LoRA matrices for each adapted weight."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, parameter in self.skeleton.named_parameters():
            if name in self.adapters:
                outputs, inputs = parameter.shape
                rank = self.adapters[name] // (outputs + inputs)
                shapes[f"{name}.lora_A"] = (rank, inputs)
                shapes[f"{name}.lora_B"] = (outputs, rank)
            elif parameter.requires_grad:
                shapes[name] = tuple(parameter.shape)
        return shapes

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that keep their loaded values."""
        return self.freeze.frozen - self.adapters.keys()


def make_plan(config: Config, num_classes: int, *, spec: ModelSpec | None = None) -> Plan:
    """Build the skeleton of the network and decide which parameters are frozen; reads no weights.

    Args:
        spec: Spec of the network, if it was resolved before.

    Raises:
        ConfigError: A pattern or a glob of an optimizer group matches nothing, or the optimizer
            cannot train these parameters.
        ModelError: The weights do not exist, or the network cannot be built.
    """
    spec = spec or resolve_model(config.model, fit=config.data.fit)
    skeleton = build_skeleton(spec, num_classes)
    names = [name for name, _ in skeleton.named_parameters()]
    freeze = plan_freeze(names, config.freeze.patterns, heads=spec.heads)
    if config.adapt is not None:
        check_input_size(skeleton, spec, batch_size=2)
    adapters = plan_adapters(
        config.adapt, skeleton, spec.preprocessing.crop, frozen=freeze.frozen, heads=spec.heads
    )
    apply_freeze(skeleton, freeze.frozen - adapters.keys())
    set_train_mode(skeleton, update_norm_stats=config.freeze.norm_stats == "update")
    plan = Plan(spec, freeze, skeleton, num_classes, adapters)
    every_name = list(dict.fromkeys([*names, *plan.moving]))
    check_groups(config.optimizer, every_name, freeze.frozen, depths=plan.depths)
    check_optimizer(
        config.optimizer, {n: p for n, p in skeleton.named_parameters() if p.requires_grad}
    )
    return plan


def apply_freeze(model: nn.Module, frozen: Collection[str]) -> None:
    """Set ``requires_grad`` of every parameter: False for the frozen ones, True for all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def resolve_policy(
    config: Config, plan: Plan, crossing: tuple[tuple[int, ...], ...] | None = None
) -> Policy:
    """Resolve ``augment.policy``: auto to ``flip`` if features can be cached, else ``crop_flip``.

    New random crops in every epoch would run the frozen prefix in every epoch; if another
    augmentation changes the images in every epoch anyway, crops add no cost. The decision depends
    on shapes only, never on timings, so that a config trains with the same views in every run.

    Args:
        crossing: Feature shapes of one image, if the network is already split.
    """
    augment = config.augment
    if augment.policy != "auto":
        return augment.policy
    if config.data.fit != "crop":
        return "flip"
    if augment.mixes or (augment.draws and not augment.views):
        return "crop_flip"
    if all(d.frozen or plan.freeze.is_head(d.name) for d in plan.freeze.decisions):
        return "flip"
    if crossing is None:
        crop = plan.spec.preprocessing.crop
        crossing = find_split_point(plan.skeleton, crop=crop, skeleton=plan.skeleton).shapes
    size = feature_bytes(crossing, precision_before_timing(config))
    return "flip" if 0 < size <= WORTH_KEEPING_BYTES else "crop_flip"


def precision_before_timing(config: Config) -> str:
    """Precision of the features; float32 if it is still to be timed."""
    precision = config.runtime.precision
    return "float32" if precision == "auto" else precision


def feature_bytes(crossing: tuple[tuple[int, ...], ...], precision: str) -> int:
    numbers = sum(math.prod(shape) for shape in crossing)
    return numbers * (FLOAT32_BYTES if precision == "float32" else FLOAT32_BYTES // 2)
