"""The config's sections, typed, closed and frozen; imports no torch.

Each section is passed to the code that needs it, never the whole. `finetune.config_file` reads a
file into a `Config` and words what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from finetune import config_stages
from finetune.backbones import family_of
from finetune.config_adapt import ADAPTED_FAMILIES
from finetune.config_adapt import AdaptConfig as AdaptConfig
from finetune.config_augment import AugmentConfig as AugmentConfig
from finetune.config_data import DataConfig as DataConfig
from finetune.config_data import Fit as Fit
from finetune.config_model import GivenPreprocessing as GivenPreprocessing
from finetune.config_model import ModelConfig as ModelConfig
from finetune.config_model import PreprocessingConfig as PreprocessingConfig
from finetune.config_optimizer import OptimizerConfig as OptimizerConfig
from finetune.config_optimizer import ScheduleConfig as ScheduleConfig
from finetune.config_section import (
    AUTO,
    MOST,
    CountOrAuto,
    LocalPath,
    Section,
    one_line,
    tuple_of,
)
from finetune.config_tune import TuneConfig as TuneConfig

FORMAT = 1
"""Version of the config's own form; raised when an old file would mean something else."""


class StageFreeze(Section):
    """What does not train, in a run or in a stage of one."""

    patterns: Annotated[tuple[str, ...], BeforeValidator(tuple_of)] = ("*",)
    """Globs over the pretrained model's parameter names; the last match wins; ! thaws."""
    norm_stats: Literal["keep", "update"] = "keep"
    """Running statistics of norm layers whose parameters are all frozen."""

    @field_validator("patterns")
    @classmethod
    def _patterns_say_something(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for position, pattern in enumerate(patterns, start=1):
            if not pattern.removeprefix("!").strip():
                raise ValueError(f"pattern {position} is empty: {pattern!r}")
            one_line(pattern)
        return patterns


class FreezeConfig(StageFreeze):
    """What does not train."""

    may_differ: bool = False
    """Continue from a run of our own that froze something else (model.weights)."""


class EarlyStoppingConfig(Section):
    """When training ends before its last epoch."""

    patience: int = Field(ge=1)
    """Epochs without a better train.monitor after which it ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """What counts as better: by more than this (accuracies are fractions)."""


class TrainConfig(Section):
    """The length and the aim of training."""

    epochs: CountOrAuto = AUTO
    """Passes over the training images; auto: by their number."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes (Szegedy et al. 2015)."""
    monitor: Literal["top1", "balanced_accuracy", "macro_f1", "loss"] = "top1"
    """Which validation figure chooses the best epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    """End early by that figure."""
    accumulate: int = Field(default=1, ge=1, le=MOST)
    """Batches whose gradients make one optimizer step."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Longest gradient, over all parameters together; a longer one is scaled down."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay, per step, of a moving average of the weights, which is evaluated and saved."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """After so long a checkpoint is written whatever it costs, also in the middle of an epoch."""


def _is_this_format(given: int) -> int:
    if given != FORMAT:
        raise ValueError(f"must be {FORMAT}, not {given}")
    return given


class StageRuntime(Section):
    """In which form the work is done, in a run or in a stage of one."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen prefix. auto times both."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """How the frozen prefix's images lie in memory. auto times both."""
    live_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of what trains (its weights stay float32). auto: as precision, or timed as well."""
    live_memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Of what trains. auto: as memory_format, or timed as well."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of what trains. auto: on CUDA, where a run is long enough to repay it."""


class RuntimeConfig(StageRuntime):
    """On what the work is done."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class StageFeatures(Section):
    """What becomes of the frozen prefix's outputs, in a run or in a stage of one."""

    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """auto: on disk where they fit and repay themselves."""


class FeaturesConfig(StageFeatures):
    """What becomes of the frozen prefix's outputs."""

    dir: LocalPath | None = None
    """Folder of the cache; default: the user's cache folder."""
    known_by: Literal["time", "content"] = "time"
    """How a changed photo is noticed: by path, size, times and inode, or by its SHA-256."""


class StageConfig(Section):
    """A part of a run, with a freezing of its own; what it leaves out comes from the base."""

    epochs: CountOrAuto = TrainConfig.model_fields["epochs"].default
    """Passes over the training images; default: train.epochs."""
    freeze: StageFreeze = Field(default_factory=StageFreeze)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    features: StageFeatures = Field(default_factory=StageFeatures)
    runtime: StageRuntime = Field(default_factory=StageRuntime)


Recipe = Literal["linear_probe", "last_block", "head_then_all", "full", "norm_only", "bias_only"]
"""Words for a freezing, or for stages; `finetune.named_recipes` says what they stand for."""


class Config(Section):
    """A whole config file."""

    format: Annotated[int, AfterValidator(_is_this_format)] = FORMAT
    model: ModelConfig
    recipe: Recipe | None = None
    """Stands for freeze.patterns, or for stages."""
    freeze: FreezeConfig = Field(default_factory=FreezeConfig)
    adapt: AdaptConfig | None = None
    """Small trainable additions to frozen weights."""
    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(tuple_of)] = ()
    """One after the other; none: the whole run is one. Each is whole: it states every key."""
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    tune: TuneConfig | None = None
    """For `finetune tune` alone."""
    output_dir: Annotated[LocalPath, AfterValidator(os.path.expanduser)]
    """Folder of the run: checkpoints, metrics, reports."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _stages_are_whole(cls, values: Any) -> Any:
        return config_stages.filled(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _a_recipe_decides_alone(self) -> Config:
        if self.recipe and self.stages:
            raise ValueError(
                f"recipe: {self.recipe} decides what trains from the first epoch to the last; "
                "remove it, or stages"
            )
        if self.recipe and "patterns" in self.freeze.model_fields_set:
            raise ValueError(
                f"recipe: {self.recipe} stands for what trains; remove it, or freeze.patterns"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        for at, length, part in self._parts():
            problem = "" if length == AUTO else part.schedule.warmup_problem(length)
            if problem:
                raise ValueError(at + problem.replace("train.", at or "train."))
        return self

    @model_validator(mode="after")
    def _plateau_comes_before_the_end(self) -> Config:
        stopping = self.train.early_stopping
        for at, _, part in self._parts():
            patience = part.schedule.patience
            if not (stopping and patience and stopping.patience <= patience):
                continue
            raise ValueError(
                f"{at}schedule.patience: {patience} has no effect, since train.early_stopping ends "
                f"training after {stopping.patience} epochs without a better figure"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_not_averaged(self) -> Config:
        if self.adapt and self.train.ema is not None:
            raise ValueError(
                "train.ema: an average of adapters is no adapter of the average; leave out ema, or "
                "adapt"
            )
        return self

    @model_validator(mode="after")
    def _adapted_network_has_attention(self) -> Config:
        if self.adapt and family_of(self.model.name).name not in ADAPTED_FAMILIES:
            raise ValueError(
                f"adapt: is for {', '.join(ADAPTED_FAMILIES)}, not for {self.model.name}; thaw "
                "parts of it with freeze.patterns instead"
            )
        return self

    @model_validator(mode="after")
    def _whole_photos_are_not_cropped(self) -> Config:
        fit = self.data.fit
        for at, _, part in self._parts():
            if fit != "crop" and part.augment.policy == "crop_flip":
                raise ValueError(
                    f"{at}augment.policy: crop_flip would cut what data.fit {fit} keeps whole; "
                    "take flip, or trivial, randaugment or autoaugment, which do not crop then"
                )
        return self

    def _parts(self) -> Iterator[tuple[str, Any, Config | StageConfig]]:
        """What trains one after the other: its place in the file, its epochs and its sections."""
        if not self.stages:
            yield "", self.train.epochs, self
        for number, stage in enumerate(self.stages):
            yield f"stages.{number}.", stage.epochs, stage

    @model_serializer(mode="wrap")
    def _without_what_a_recipe_stands_for(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if self.recipe:
            del values["freeze"]["patterns"]
        return values

    def plain(self) -> dict[str, Any]:
        """The config as plain values, ready for YAML or JSON; what has no effect is left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        if self.stages:
            return config_stages.without_base(values)
        del values["stages"]
        return values
