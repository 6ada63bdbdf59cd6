"""The plan that ``freeze-report`` prints and ``train`` carries out: network, freezing, cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from finetune.adapters import plan_adapters
from finetune.config import Config, OptimizerConfig
from finetune.cost import Cost, measure_cost
from finetune.data.views import Views
from finetune.freeze import FreezePlan, plan_freeze
from finetune.layers import depths_of
from finetune.model import ModelSpec, build_skeleton, check_input_size, resolve_model
from finetune.optim import check_optimizer
from finetune.param_groups import check_groups, plan_groups
from finetune.results import (
    AdapterFacts,
    Boundary,
    Cut,
    FreezeReport,
    GroupRow,
    Memory,
    NormRow,
    Operations,
    ParameterRow,
    PatternRow,
    Totals,
)
from finetune.split import WORTH_KEEPING_BYTES, Split, find_cut
from finetune.train_mode import keeps_statistics, norm_layers, set_train_mode

_BYTES = 4  # a float32


@dataclass(frozen=True)
class Plan:
    """A network that is to be trained: its spec, a skeleton of it, and what of it is frozen."""

    spec: ModelSpec
    freeze: FreezePlan
    skeleton: nn.Module
    """In which the weights with an adapter train: they are what changes."""
    num_classes: int
    adapters: dict[str, int] = field(default_factory=dict)
    """Weights that get an adapter, with the numbers that it holds."""

    @cached_property
    def cost(self) -> Cost:
        """Multiply-adds, and where the backward pass ends."""
        return measure_cost(self.skeleton, crop=self.spec.preprocessing.crop)

    @cached_property
    def depths(self) -> dict[str, int]:
        """Layers between each parameter and the head's; an adapter's as its weight's."""
        depths = depths_of(self.skeleton, self.spec.family)
        return depths | {f"{n}.lora_{letter}": depths[n] for n in self.adapters for letter in "AB"}

    @cached_property
    def moving(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the optimizer moves: of an adapted weight the two matrices beside it."""
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
    def held(self) -> frozenset[str]:
        """Names of the parameters that stay as they were loaded."""
        return self.freeze.frozen - self.adapters.keys()


def make_plan(config: Config, num_classes: int, *, spec: ModelSpec | None = None) -> Plan:
    """Settle the network and what of it is frozen; reads no weights.

    Args:
        spec: Of a network that was built already.

    Raises:
        ConfigError: a pattern or an optimizer's glob matches nothing, or the optimizer cannot be.
        ModelError: no such weights, or the network cannot be built.
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
    """Set ``requires_grad`` of every parameter: off for those named, on for all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def resolve_policy(
    config: Config, plan: Plan, crossing: tuple[tuple[int, ...], ...] | None = None
) -> str:
    """What ``augment.policy`` means: two views of each image where they can be kept.

    New random crops in every epoch would run the frozen part in every epoch; where something else
    is new in every epoch, they cost nothing more. Shapes alone decide, never a timing, which would
    train the same config in other views from run to run.

    Args:
        crossing: Shapes of an image's features, where the network is split already.
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
        crossing = find_cut(plan.skeleton, crop=crop, skeleton=plan.skeleton).shapes
    size = _bytes_of(crossing, _precision_before_timing(config))
    return "flip" if 0 < size <= WORTH_KEEPING_BYTES else "crop_flip"


def _precision_before_timing(config: Config) -> str:
    """The precision of features; float32 where it is still to be timed."""
    precision = config.runtime.precision
    return "float32" if precision == "auto" else precision


def _bytes_of(crossing: tuple[tuple[int, ...], ...], precision: str) -> int:
    numbers = sum(math.prod(shape) for shape in crossing)
    return numbers * (_BYTES if precision == "float32" else _BYTES // 2)


def resolve_config(config: Config, plan: Plan, *, device: str, workers: int, policy: str) -> Config:
    """The config with what the plan, the data and the machine made of its ``auto``s."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "weights": plan.spec.weights,
                    "preprocessing": plan.spec.preprocessing.given(),
                }
            ),
            "data": config.data.model_copy(update={"workers": workers}),
            "augment": config.augment.model_copy(update={"policy": policy}),
            "runtime": config.runtime.model_copy(update={"device": device}),
        }
    )


def make_freeze_report(
    plan: Plan,
    config: Config,
    *,
    split: Split | None = None,
    num_train: int | None = None,
    num_val: int | None = None,
) -> FreezeReport:
    """The plan in figures.

    Args:
        split: Of the network, where it was made already.
        num_train, num_val: Images, where the data is at hand; they decide the size of the cache.
    """
    rows = _parameter_rows(plan)
    totals = _totals(rows)
    cost = plan.cost
    return FreezeReport(
        model=plan.spec.name,
        num_classes=plan.num_classes,
        head=plan.spec.family.head,
        patterns=_pattern_rows(plan.freeze, rows),
        parameters=rows,
        totals=totals,
        norm_layers=_norm_rows(plan.skeleton),
        backward_boundary=Boundary(cost.last_without_backward, cost.first_with_backward),
        cut=_cut(plan, config, cost, split, num_train, num_val),
        memory=_memory(totals, sum(plan.adapters.values()), config.optimizer),
        adapters=AdapterFacts(len(plan.adapters), sum(plan.adapters.values())),
        groups=_group_rows(plan, config.optimizer),
        operations=Operations(
            input_size=plan.spec.preprocessing.crop,
            forward=cost.forward_frozen + cost.forward_live,
            forward_frozen=cost.forward_frozen,
            forward_trainable=cost.forward_live,
            backward=cost.backward,
            backward_if_all_trained=cost.backward_everything,
        ),
        warnings=plan.freeze.warnings,
    )


def _cut(
    plan: Plan,
    config: Config,
    cost: Cost,
    split: Split | None,
    num_train: int | None,
    num_val: int | None,
) -> Cut:
    if split is None:
        crop = plan.spec.preprocessing.crop
        found = find_cut(plan.skeleton, crop=crop, skeleton=plan.skeleton)
        after, crossing = found.after, found.shapes
    else:
        after, crossing = split.last, split.crossing
    precision = _precision_before_timing(config)
    size = _bytes_of(crossing, precision)
    policy = resolve_policy(config, plan, crossing)
    views = Views.of_training(config.augment.model_copy(update={"policy": policy})).count
    known = num_train is not None and num_val is not None and views is not None
    return Cut(
        after=after,
        crossing=crossing,
        precision=precision,
        bytes_per_image=size,
        forward_once=cost.forward_frozen / (cost.forward_frozen + cost.forward_live)
        if after
        else 0.0,
        cache_bytes=size * ((num_train or 0) * (views or 0) + (num_val or 0))
        if known and after
        else None,
    )


def _parameter_rows(plan: Plan) -> tuple[ParameterRow, ...]:
    decisions = {decision.name: decision for decision in plan.freeze.decisions}
    return tuple(
        ParameterRow(
            name=name,
            shape=tuple(parameter.shape),
            numel=parameter.numel(),
            frozen=decisions[name].frozen,
            pattern=None if plan.freeze.is_head(name) else decisions[name].pattern,
            head=plan.freeze.is_head(name),
        )
        for name, parameter in plan.skeleton.named_parameters()
    )


def _pattern_rows(plan: FreezePlan, rows: tuple[ParameterRow, ...]) -> tuple[PatternRow, ...]:
    numel = {row.name: row.numel for row in rows}
    total = sum(numel.values())
    result = []
    for match in plan.matches:
        taken = [name for name in match.decided if not plan.is_head(name)]
        parameters = sum(numel[name] for name in taken)
        result.append(
            PatternRow(
                pattern=match.pattern,
                freezes=not match.pattern.startswith("!"),
                matched_tensors=len(match.matched),
                tensors=len(taken),
                parameters=parameters,
                share=parameters / total,
            )
        )
    return tuple(result)


def _totals(rows: tuple[ParameterRow, ...]) -> Totals:
    frozen = [row for row in rows if row.frozen]
    parameters = sum(row.numel for row in rows)
    frozen_parameters = sum(row.numel for row in frozen)
    return Totals(
        parameters=parameters,
        trainable=parameters - frozen_parameters,
        frozen=frozen_parameters,
        tensors=len(rows),
        trainable_tensors=len(rows) - len(frozen),
        frozen_tensors=len(frozen),
    )


def totals_of(reports: Sequence[FreezeReport]) -> Totals:
    """Over the stages of a run: what trains in some of them, and what in none."""
    stages = zip(*(report.parameters for report in reports), strict=True)
    return _totals(
        tuple(replace(rows[0], frozen=all(row.frozen for row in rows)) for rows in stages)
    )


def _norm_rows(skeleton: nn.Module) -> tuple[NormRow, ...]:
    rows = []
    for path, norm in norm_layers(skeleton):
        parameters = list(norm.parameters())
        statistics = "none"
        if keeps_statistics(norm):
            statistics = "updated" if norm.training else "kept"
        rows.append(
            NormRow(
                name=path,
                type=type(norm).__name__,
                frozen=bool(parameters) and not any(p.requires_grad for p in parameters),
                mode="train" if norm.training else "eval",
                statistics=statistics,
            )
        )
    return tuple(rows)


def _group_rows(plan: Plan, optimizer: OptimizerConfig) -> tuple[GroupRow, ...]:
    return tuple(
        GroupRow(
            *(group.lr, group.weight_decay, len(group.names)),
            *(sum(math.prod(plan.moving[name]) for name in group.names), group.names),
        )
        for group in plan_groups(optimizer, plan.moving, depths=plan.depths)
    )


def _memory(totals: Totals, adapters: int, optimizer: OptimizerConfig) -> Memory:
    states = optimizer.state_tensors
    trainable = (totals.trainable + adapters) * _BYTES
    return Memory(
        optimizer=optimizer.name,
        gradient_bytes=trainable,
        gradient_bytes_saved=totals.frozen * _BYTES,
        optimizer_bytes=trainable * states,
        optimizer_bytes_saved=totals.frozen * _BYTES * states,
    )
