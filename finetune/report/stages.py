"""Text output of the stages of a run, a few lines per stage."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.core.text import count, listed_patterns, plural
from finetune.report.layout import Field
from finetune.results.train import PlannedStage, PredictedTime, StageFacts, StageSummary


def trained_facts(stages: Sequence[StageSummary]) -> list[Field]:
    """Return the lines of each trained stage; empty for a run without stages."""
    if len(stages) == 1:
        return []
    return [fact for stage in stages for fact in _trained(stage)]


def _trained(stage: StageSummary) -> list[Field]:
    kept = f", its state of {plural(stage.state_kept, 'tensor')} kept" if stage.state_kept else ""
    verified = f", {stage.frozen_verified} tensors and buffers verified at its end"
    if not stage.frozen_verified:
        verified = ""
    figure = "" if stage.val is None else f": val top-1 {stage.val.top1:.2%}"
    return [
        Field(f"Stage {stage.number}", f"{_span(stage)}{figure}"),
        *([Field("", f"ended early: {stage.stopped}")] if stage.stopped else []),
        Field("", f"{stage.optimizer}, lr {stage.lr:g}{kept}", detail=True),
        Field("", f"{_freezing(stage)}{verified}", detail=True),
        Field("", _cut(stage), detail=True),
    ]


def planned_facts(stages: Sequence[PlannedStage]) -> list[Field]:
    """Return the lines of each planned stage; for a run without stages, its predicted time."""
    if len(stages) == 1:
        return time_facts(stages[0].predicted)
    return [fact for stage in stages for fact in _planned(stage)]


def _planned(stage: PlannedStage) -> list[Field]:
    return [
        Field(
            f"Stage {stage.number}",
            f"{plural(stage.epochs, 'epoch')}; {stage.optimizer}, lr {stage.lr:g}",
        ),
        Field("", _freezing(stage)),
        Field("", _cut(stage), detail=True),
        *(field._replace(label="") for field in time_facts(stage.predicted)),
    ]


def time_facts(time: PredictedTime) -> list[Field]:
    """Describe the predicted time per epoch, with and without cached features."""
    without = f"about {_seconds(time.epoch_without_cache_s)} an epoch"
    if time.epoch_with_cache_s is None or time.fill_s is None:
        return [Field("Time", without), Field("", "no features are cached", detail=True)]
    return [
        Field(
            "Time",
            f"features about {_seconds(time.fill_s)}, in the first run alone; then about "
            f"{_seconds(time.epoch_with_cache_s)} an epoch",
        ),
        Field("", f"{without} without cached features", detail=True),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:,.0f} s"


def _span(stage: StageSummary) -> str:
    first, last = stage.first_epoch, stage.last_epoch
    if first == last:
        return f"epoch {last} in {stage.elapsed_s:.1f} s"
    best = "" if stage.best_epoch is None else f", the best is {stage.best_epoch}"
    return f"epochs {first} to {last} in {stage.elapsed_s:.1f} s{best}"


def _freezing(stage: StageFacts) -> str:
    update = ", norm_stats update" if stage.norm_stats == "update" else ""
    if not stage.frozen_tensors:
        return f"everything is trained: {plural(stage.trainable_parameters, 'parameter')}"
    return (
        f"patterns {listed_patterns(stage.patterns)}{update}: "
        f"{plural(stage.trainable_parameters, 'parameter')} in "
        f"{plural(stage.trainable_tensors, 'tensor')} train; {count(stage.frozen_parameters)} in "
        f"{stage.frozen_tensors:,} are frozen"
    )


def _cut(stage: StageFacts) -> str:
    if stage.cut_after is None:
        return "no split: the whole network runs in every epoch"
    return (
        f"split after {stage.cut_after}: {stage.forward_once:.1%} of forward MACs run once per "
        "image"
    )
