"""Conversion between a config with stages and one plain config per stage; imports no torch.

Training, splitting, caching, verification and reports take the config of one stage, which is the
same as that of a run without stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from finetune.config import stage_inheritance
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, StageConfig

_Config = TypeVar("_Config", bound=Config)


@dataclass(frozen=True)
class RunConfig:
    """Config of a run, as given and as resolved so far.

    Attributes:
        given: Config before anything in it was resolved.
        stages: Config of each stage; those that were set up are resolved, the others planned.
    """

    given: Config
    stages: tuple[PlannedConfig, ...]

    def with_stage(self, number: int, config: PlannedConfig) -> RunConfig:
        """Return the run's config with the config of the stage at index ``number`` replaced."""
        return replace(self, stages=(*self.stages[:number], config, *self.stages[number + 1 :]))

    def saved_at(self, number: int) -> PlannedConfig:
        """Return the config to save with a stage: its sections, and all stages.

        Code that reads the sections sees the stage; training from this config repeats the whole
        run, since stages override the base.
        """
        current = self.stages[number]
        if len(self.stages) == 1 and not self.given.stages:
            return current
        return current.with_values({"stages": tuple(map(_stage_of, self.stages))})


def stage_configs(config: _Config) -> tuple[_Config, ...]:
    """Return the config of each stage; for a run without stages, only the config itself."""
    if not config.stages:
        return (config,)
    return tuple(_alone(config, stage) for stage in config.stages)


def planned_stages(config: Config) -> tuple[PlannedConfig, ...]:
    """Return the config of each stage of a run that began, whose length, optimizer and schedule
    are resolved.

    Raises:
        ConfigError: ``auto`` is left there.
    """
    return tuple(stage.resolved_as(PlannedConfig, {}) for stage in stage_configs(config))


def _alone(config: _Config, stage: StageConfig) -> _Config:
    return config.with_values(
        {
            "stages": (),
            "train.epochs": stage.epochs,
            # As plain values, since the config may have narrower types than its stages.
            "optimizer": dict(stage.optimizer),
            "schedule": dict(stage.schedule),
            "augment": dict(stage.augment),
            **{f"freeze.{key}": value for key, value in stage.freeze},
            **{f"features.{key}": value for key, value in stage.features},
            **{f"runtime.{key}": value for key, value in stage.runtime},
        }
    )


def _stage_of(config: Config) -> StageConfig:
    """Return the part of a stage's config that a stage can override, in the types of a file."""
    values: dict[str, Any] = {"epochs": config.train.epochs}
    for name in stage_inheritance.SECTIONS:
        section, kind = getattr(config, name), StageConfig.model_fields[name].annotation
        assert kind is not None
        values[name] = {key: getattr(section, key) for key in kind.model_fields}
    return StageConfig.model_validate(values)


def stage_at(stages: Sequence[PlannedConfig], epoch: int) -> int:
    """Return the index of the stage that contains an epoch of the whole run.

    Args:
        stages: Config of each stage.
        epoch: Epoch, from 1 to the total number of epochs.
    """
    last = 0
    for position, config in enumerate(stages):
        last += config.train.epochs
        if epoch <= last:
            return position
    raise ValueError(f"epoch {epoch} of {last}")


def epochs_of(stages: Sequence[PlannedConfig]) -> int:
    """Return the total number of epochs of all stages."""
    return sum(config.train.epochs for config in stages)
