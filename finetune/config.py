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

from finetune.backbones import BUILDERS, BUNDLED_MODEL
from finetune.config_augment import AugmentConfig as AugmentConfig
from finetune.config_data import DataConfig as DataConfig
from finetune.config_data import Fit as Fit
from finetune.config_section import Section, Text, one_line, tuple_of
from finetune.config_tune import TuneConfig as TuneConfig
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


class TrainConfig(Section):
    """The length and the aim of training."""

    epochs: int = Field(default=25, ge=1)
    """Passes over the training images."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes (Szegedy et al. 2015)."""


def _with_defaults_of(defaults: dict[str, dict[str, Any]], default_name: str, value: Any) -> Any:
    """Fill in what the section's ``name`` implies, so that a resolved config states it."""
    if not isinstance(value, dict):
        return value
    name = value.get("name", default_name)
    # Where the name itself is wrong, that alone is to be reported.
    known = isinstance(name, str) and name in defaults
    implied = defaults[name if known else default_name]
    return {"name": default_name} | implied | value


def _refuse_foreign(section: Section, name: str, own: dict[str, dict[str, Any]]) -> None:
    """An option that cannot take effect is refused, not ignored."""
    optional = {key for options in own.values() for key in options}
    for key in sorted(optional - own[name].keys()):
        if getattr(section, key) is not None:
            owners = " and ".join(other for other, options in own.items() if key in options)
            raise ValueError(f"{key}: has no effect on {name}; it belongs to {owners}")


class OptimizerConfig(Section):
    """How the trainable parameters move."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    """Peak learning rate, per optimizer step; default 0.01 for sgd, 0.001 for adamw."""
    weight_decay: float = Field(ge=0)
    """Default 0 for sgd, 0.01 for adamw."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """sgd only; default 0.9."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults_of(_OPTIMIZERS, "sgd", value)

    @model_validator(mode="after")
    def _only_own_options(self) -> OptimizerConfig:
        _refuse_foreign(self, self.name, _OPTIMIZERS)
        return self


_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9},
    "adamw": {"lr": 0.001, "weight_decay": 0.01},
}


class ScheduleConfig(Section):
    """How the learning rate changes, step by step."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Linear rise from a hundredth of the peak, in epochs."""
    step_epochs: int | None = Field(default=None, ge=1)
    """step only: epochs between drops; default 7."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """step only: factor of each drop; default 0.1."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults_of(_SCHEDULES, "cosine", value)

    @model_validator(mode="after")
    def _only_own_options(self) -> ScheduleConfig:
        _refuse_foreign(self, self.name, _SCHEDULES)
        return self


_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {},
    "step": {"step_epochs": 7, "gamma": 0.1},
}


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
    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    tune: TuneConfig | None = None
    """For `finetune tune` alone."""
    output_dir: Annotated[Text, AfterValidator(os.path.expanduser)]
    """Folder of the run: checkpoints, metrics, reports."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs: {self.schedule.warmup_epochs:g} is longer than "
                f"train.epochs, {self.train.epochs}"
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
