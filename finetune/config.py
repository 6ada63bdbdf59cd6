"""The config's sections, typed, closed and frozen; imports no torch.

Each section is passed to the code that needs it, never the whole. `finetune.config_file` reads a
file into a `Config` and words what is wrong with it.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from finetune.backbones import BUILDERS, BUNDLED_MODEL, family_of
from finetune.config_adapt import ADAPTED_FAMILIES
from finetune.config_adapt import AdaptConfig as AdaptConfig
from finetune.config_augment import AugmentConfig as AugmentConfig
from finetune.config_data import DataConfig as DataConfig
from finetune.config_data import Fit as Fit
from finetune.config_optimizer import OptimizerConfig as OptimizerConfig
from finetune.config_optimizer import ScheduleConfig as ScheduleConfig
from finetune.config_section import AUTO, CountOrAuto, Section, Text, one_line, tuple_of
from finetune.errors import did_you_mean

FORMAT = 1
"""Version of the config's own form; raised when an old file would mean something else."""


Size = Annotated[int, Field(ge=1, le=4096)]
RGB = Annotated[tuple[float, float, float], BeforeValidator(tuple_of)]


class GivenPreprocessing(Section):
    """From a decoded photo to the network's input, as a config gives it."""

    resize: Size
    """The shorter side, in pixels, before the crop; data.fit pad and stretch do without."""
    crop: Size
    """Side of the square, in pixels, that the network takes."""
    mean: RGB = (0.485, 0.456, 0.406)
    """Subtracted from each channel, for pixels in 0..1."""
    std: RGB = (0.229, 0.224, 0.225)
    """Divides each channel, after the mean."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @field_validator("std")
    @classmethod
    def _std_is_positive(cls, std: RGB) -> RGB:
        if min(std) <= 0:
            raise ValueError(f"every value must be above 0, not {list(std)}")
        return std


class PreprocessingConfig(GivenPreprocessing):
    """The whole way to the network's input, which travels in a checkpoint."""

    fit: Fit = "crop"
    """From ``data.fit``; checkpoints from before it was there cropped."""


def _word_or_section(value: Any) -> str:
    return "word" if isinstance(value, str) else "section"


class ModelConfig(Section):
    """Which network, with which weights."""

    name: str
    """A torchvision classification builder; `finetune models` lists them."""
    weights: Text = "DEFAULT"
    """DEFAULT, an entry such as IMAGENET1K_V2, a path to a state dict, bundled, or none."""
    preprocessing: Annotated[
        Annotated[str, Tag("word")] | Annotated[GivenPreprocessing, Tag("section")],
        Discriminator(_word_or_section),
    ] = "auto"
    """auto (the weights' own), the name of an entry, or every value."""
    aux_heads: bool = False
    """Keep and train the auxiliary heads of googlenet and inception_v3."""

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        if name not in BUILDERS:
            raise ValueError(
                f"{name!r} is no torchvision classification builder."
                f"{did_you_mean(name, BUILDERS)} `finetune models` lists all {len(BUILDERS)}."
            )
        return name

    @field_validator("weights", mode="before")
    @classmethod
    def _null_is_none(cls, weights: Any) -> Any:
        return "none" if weights is None else weights

    @model_validator(mode="after")
    def _bundled_fits(self) -> ModelConfig:
        if self.weights == "bundled" and self.name != BUNDLED_MODEL:
            raise ValueError(
                f"weights: bundled are of {BUNDLED_MODEL}, not of {self.name}; "
                f"set name: {BUNDLED_MODEL}, or give other weights"
            )
        return self


class FreezeConfig(Section):
    """What does not train."""

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


class EarlyStoppingConfig(Section):
    """When training ends before its last epoch."""

    patience: int = Field(ge=1)
    """Epochs without a better train.monitor after which it ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """What counts as better: by more than this (accuracies are fractions)."""


class TrainConfig(Section):
    """The length and the aim of training."""

    epochs: CountOrAuto = 25
    """Passes over the training images; auto: by their number."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes (Szegedy et al. 2015)."""
    monitor: Literal["top1", "balanced_accuracy", "macro_f1", "loss"] = "top1"
    """Which validation figure chooses the best epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    """End early by that figure."""


def _is_this_format(given: int) -> int:
    if given != FORMAT:
        raise ValueError(f"must be {FORMAT}, not {given}")
    return given


class RuntimeConfig(Section):
    """On what the work is done."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
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


class FeaturesConfig(Section):
    """What becomes of the frozen prefix's outputs."""

    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """auto: on disk where they fit and repay themselves."""
    dir: Text | None = None
    """Folder of the cache; default: the user's cache folder."""
    known_by: Literal["time", "content"] = "time"
    """How a changed photo is noticed: by path, size and time of change, or by its SHA-256."""


class Config(Section):
    """A whole config file."""

    format: Annotated[int, AfterValidator(_is_this_format)] = FORMAT
    model: ModelConfig
    freeze: FreezeConfig = Field(default_factory=FreezeConfig)
    adapt: AdaptConfig | None = None
    """Small trainable additions to frozen weights."""
    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    output_dir: Annotated[Text, AfterValidator(os.path.expanduser)]
    """Folder of the run: checkpoints, metrics, reports."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        if self.train.epochs != AUTO:
            problem = self.schedule.warmup_problem(self.train.epochs)
            if problem:
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _plateau_comes_before_the_end(self) -> Config:
        stopping, patience = self.train.early_stopping, self.schedule.patience
        if stopping and patience and stopping.patience <= patience:
            raise ValueError(
                f"schedule.patience: {patience} has no effect, since train.early_stopping ends "
                f"training after {stopping.patience} epochs without a better figure"
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
        if fit != "crop" and self.augment.policy == "crop_flip":
            raise ValueError(
                f"augment.policy: crop_flip would cut what data.fit {fit} keeps whole; take flip, "
                "or trivial, randaugment or autoaugment, which do not crop then"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """The config as plain values, ready for YAML or JSON; options without effect left out."""
        return self.model_dump(mode="json", exclude_none=True)
