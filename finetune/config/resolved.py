"""Configs in which ``auto`` is resolved, as types; imports no torch.

`Config` is what a user gives, and most of its values may be ``auto``. A `PlannedConfig` is the
config of one stage after its plan is made and the images are counted: length, optimizer and
schedule are numbers. A `ResolvedConfig` is that of a stage on a machine: nothing is ``auto``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, field_validator

from finetune.config.augment import AugmentConfig, Policy
from finetune.config.base import AUTO, Count, InvalidError, Rate, Share
from finetune.config.data import DataConfig, white_level, worker_count
from finetune.config.model import GivenPreprocessing, ModelConfig
from finetune.config.optimizer import OptimizerConfig, ScheduleConfig
from finetune.config.schema import (
    Cache,
    Config,
    Device,
    FeaturesConfig,
    FrozenPrecision,
    MemoryFormat,
    Precision,
    RuntimeConfig,
    Switch,
    TrainConfig,
)


class ResolvedTrain(TrainConfig):
    """Section ``train`` without ``auto``."""

    epochs: Count


class ResolvedOptimizer(OptimizerConfig):
    """Section ``optimizer`` without ``auto``."""

    lr: Rate
    weight_decay: Share

    @field_validator("name")
    @classmethod
    def _name_is_resolved(cls, name: str) -> str:
        if name == AUTO:
            raise InvalidError("must be the name of an optimizer, not auto")
        return name


class ResolvedSchedule(ScheduleConfig):
    """Section ``schedule`` without ``auto``."""

    warmup_epochs: Share


class PlannedConfig(Config):
    """Config of a stage whose length, optimizer and schedule are resolved."""

    recipe: None = None
    train: ResolvedTrain
    optimizer: ResolvedOptimizer
    schedule: ResolvedSchedule


class ResolvedModel(ModelConfig):
    """Section ``model`` without ``auto``."""

    preprocessing: GivenPreprocessing


class ResolvedData(DataConfig):
    """Section ``data`` without ``auto``."""

    levels: Annotated[int, BeforeValidator(white_level)]
    workers: Annotated[int, BeforeValidator(worker_count)]


class ResolvedAugment(AugmentConfig):
    """Section ``augment`` without ``auto``."""

    policy: Policy


class ResolvedFeatures(FeaturesConfig):
    """Section ``features`` without ``auto``."""

    cache: Cache


class ResolvedRuntime(RuntimeConfig):
    """Section ``runtime`` without ``auto``."""

    precision: FrozenPrecision
    memory_format: MemoryFormat
    live_precision: Precision
    live_memory_format: MemoryFormat
    compile: Switch
    device: Device


class ResolvedConfig(PlannedConfig):
    """Config of a stage without ``auto``."""

    model: ResolvedModel
    data: ResolvedData
    augment: ResolvedAugment
    features: ResolvedFeatures
    runtime: ResolvedRuntime
