"""Conversion between a config with stages and one plain config per stage; imports no torch.

Training, splitting, caching, verification and reports take the config of one stage, which is the
same as that of a run without stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from finetune.config.base import Section
from finetune.config.schema import Config, StageConfig, StageFeatures, StageFreeze, StageRuntime

_Part = TypeVar("_Part", bound=Section)


def stage_configs(config: Config) -> tuple[Config, ...]:
    """Return the config of each stage; for a run without stages, only the config itself."""
    if not config.stages:
        return (config,)
    return tuple(_alone(config, stage) for stage in config.stages)


def _alone(config: Config, stage: StageConfig) -> Config:
    return config.with_values(
        {
            "stages": (),
            "train.epochs": stage.epochs,
            "optimizer": stage.optimizer,
            "schedule": stage.schedule,
            "augment": stage.augment,
            **{f"freeze.{key}": value for key, value in stage.freeze},
            **{f"features.{key}": value for key, value in stage.features},
            **{f"runtime.{key}": value for key, value in stage.runtime},
        }
    )


def with_stages(current: Config, stages: Sequence[StageConfig], number: int) -> Config:
    """Return the config to save with a stage: its sections, and all stages with this one resolved.

    Code that reads the sections sees the stage; training from this config repeats the whole run,
    since stages override the base.

    Args:
        current: Resolved config of the stage.
        stages: Stages of the whole run; empty for a run without stages.
        number: Index of the stage, from 0.
    """
    if not stages:
        return current
    own = (*stages[:number], _stage_of(current), *stages[number + 1 :])
    return current.with_values({"stages": own})


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
    """Return the part of a section that a stage can override."""
    return kind(**{key: getattr(whole, key) for key in kind.model_fields})


def stage_at(stages: Sequence[Config], epoch: int) -> int:
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


def epochs_of(stages: Sequence[Config]) -> int:
    """Return the total number of epochs of all stages."""
    return sum(config.train.epochs for config in stages)
