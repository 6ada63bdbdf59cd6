"""Freeze report: frozen parameters, the pattern that froze each, and the cost that this saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from finetune.config.resolved import ResolvedOptimizer
from finetune.config.schema import Config, OptimizerConfig
from finetune.data.loading.views import Views
from finetune.freezing.flops import Cost
from finetune.freezing.graph_split import GraphSplit, find_split_point
from finetune.freezing.param_groups import plan_groups
from finetune.freezing.patterns import FreezePlan
from finetune.freezing.plan import (
    FLOAT32_BYTES,
    Plan,
    feature_bytes,
    precision_before_timing,
    resolve_policy,
)
from finetune.models.norm_layers import keeps_statistics, norm_layers
from finetune.results.freeze import (
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
    StagedFreezeReport,
    Totals,
)


def make_freeze_report(
    plan: Plan,
    config: Config,
    optimizer: ResolvedOptimizer,
    *,
    split: GraphSplit | None = None,
    num_train: int | None = None,
    num_val: int | None = None,
) -> FreezeReport:
    """Summarize a plan as a freeze report.

    Args:
        split: Split of the network, if it was made before.
        num_train, num_val: Number of images, if the data is available; they determine the size of
            the feature cache.
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
        memory=_memory(totals, sum(plan.adapters.values()), optimizer),
        adapters=AdapterFacts(len(plan.adapters), sum(plan.adapters.values())),
        groups=_group_rows(plan, optimizer),
        operations=Operations(
            input_size=plan.spec.preprocessing.crop,
            forward=cost.forward_frozen + cost.forward_trainable,
            forward_frozen=cost.forward_frozen,
            forward_trainable=cost.forward_trainable,
            backward=cost.backward,
            backward_if_all_trained=cost.backward_everything,
        ),
        warnings=plan.freeze.warnings,
    )


def _cut(
    plan: Plan,
    config: Config,
    cost: Cost,
    split: GraphSplit | None,
    num_train: int | None,
    num_val: int | None,
) -> Cut:
    if split is None:
        crop = plan.spec.preprocessing.crop
        found = find_split_point(plan.skeleton, crop=crop, skeleton=plan.skeleton)
        after, crossing = found.after, found.shapes
    else:
        after, crossing = split.last, split.crossing
    precision = precision_before_timing(config)
    size = feature_bytes(crossing, precision)
    policy = resolve_policy(config, plan, crossing)
    views = Views.of_training(config.augment.with_values({"policy": policy})).count
    known = num_train is not None and num_val is not None and views is not None
    return Cut(
        after=after,
        crossing=crossing,
        precision=precision,
        bytes_per_image=size,
        forward_once=cost.forward_frozen / (cost.forward_frozen + cost.forward_trainable)
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
    """Return the totals over all stages; a parameter counts as frozen if no stage trains it."""
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


def _group_rows(plan: Plan, optimizer: ResolvedOptimizer) -> tuple[GroupRow, ...]:
    return tuple(
        GroupRow(
            lr=group.lr,
            weight_decay=group.weight_decay,
            tensors=len(group.names),
            parameters=sum(math.prod(plan.moving[name]) for name in group.names),
            names=group.names,
        )
        for group in plan_groups(optimizer, plan.moving, depths=plan.depths)
    )


def _memory(totals: Totals, adapters: int, optimizer: OptimizerConfig) -> Memory:
    states = optimizer.state_tensors
    trainable = (totals.trainable + adapters) * FLOAT32_BYTES
    return Memory(
        optimizer=optimizer.name,
        gradient_bytes=trainable,
        gradient_bytes_saved=totals.frozen * FLOAT32_BYTES,
        optimizer_bytes=trainable * states,
        optimizer_bytes_saved=totals.frozen * FLOAT32_BYTES * states,
    )


def staged_report(
    reports: Sequence[FreezeReport], epochs: Sequence[int | str]
) -> FreezeReport | StagedFreezeReport:
    """Combine the reports of all stages; return the only report of a run without stages.

    Args:
        epochs: Number of epochs of each stage; auto if it depends on data that is missing.
    """
    if len(reports) == 1:
        return reports[0]
    return StagedFreezeReport(tuple(reports), tuple(epochs))
