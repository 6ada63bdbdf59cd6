"""A run in stages: a tuple of plain configs, one for each stage, carried out one after the other.

Whatever trains, splits, caches, proves or reports takes the config of one stage, and cannot tell it
from a run of its own. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from finetune.config import Config, StageConfig, StageFeatures, StageFreeze, StageRuntime
from finetune.config_section import Section
from finetune.results import FreezeReport, StagedFreezeReport

_Part = TypeVar("_Part", bound=Section)


def stage_configs(config: Config) -> tuple[Config, ...]:
    """The config of each stage; of a run without stages the config itself, alone."""
    if not config.stages:
        return (config,)
    return tuple(_alone(config, stage) for stage in config.stages)


def _alone(config: Config, stage: StageConfig) -> Config:
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"epochs": stage.epochs}),
            "freeze": config.freeze.model_copy(update=dict(stage.freeze)),
            "optimizer": stage.optimizer,
            "schedule": stage.schedule,
            "augment": stage.augment,
            "features": config.features.model_copy(update=dict(stage.features)),
            "runtime": config.runtime.model_copy(update=dict(stage.runtime)),
            "stages": (),
        }
    )


def with_stages(current: Config, stages: Sequence[StageConfig], number: int) -> Config:
    """A stage's config with all stages in it, that one as it became: what is saved with it.

    What reads its sections sees the stage; what trains it again trains the whole run, since stages
    overrule the base.

    Args:
        current: Plain, resolved.
        stages: Of the whole run; none where it has none.
        number: Of this stage, from 0.
    """
    if not stages:
        return current
    own = (*stages[:number], _stage_of(current), *stages[number + 1 :])
    return current.model_copy(update={"stages": own})


def _stage_of(config: Config) -> StageConfig:
    return StageConfig(
        epochs=config.train.epochs,
        freeze=_part(StageFreeze, config.freeze),
        optimizer=config.optimizer,
        schedule=config.schedule,
        augment=config.augment,
        features=_part(StageFeatures, config.features),
        runtime=_part(StageRuntime, config.runtime),
    )


def _part(kind: type[_Part], whole: _Part) -> _Part:
    """Those of a section's values that a stage has as well."""
    return kind(**{key: getattr(whole, key) for key in kind.model_fields})


def stage_at(stages: Sequence[Config], epoch: int) -> int:
    """Position of the stage that an epoch of the whole run lies in.

    Args:
        epoch: From 1; at most as many as all stages have.
    """
    last = 0
    for position, config in enumerate(stages):
        last += config.train.epochs
        if epoch <= last:
            return position
    raise ValueError(f"epoch {epoch} of {last}")


def epochs_of(stages: Sequence[Config]) -> int:
    """Of the whole run."""
    return sum(config.train.epochs for config in stages)


def staged_report(
    reports: Sequence[FreezeReport], stages: Sequence[Config]
) -> FreezeReport | StagedFreezeReport:
    """The freeze reports of a run's stages as one; of a run without stages its own."""
    if len(reports) == 1:
        return reports[0]
    return StagedFreezeReport(tuple(reports), tuple(config.train.epochs for config in stages))
