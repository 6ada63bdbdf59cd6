"""Schema of the config: typed, frozen sections without unknown keys; imports no torch.

Code receives the sections that it needs, not the whole config. `finetune.config.load` reads a file
into a `Config` and reports its problems.
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

from finetune.config import stage_inheritance
from finetune.config.adapt import ADAPTED_FAMILIES
from finetune.config.adapt import AdaptConfig as AdaptConfig
from finetune.config.augment import AugmentConfig as AugmentConfig
from finetune.config.base import (
    AUTO,
    MOST,
    CountOrAuto,
    Duration,
    InvalidError,
    LocalPath,
    NoEffectError,
    Section,
    one_line,
    tuple_of,
)
from finetune.config.data import DataConfig as DataConfig
from finetune.config.data import Fit as Fit
from finetune.config.model import GivenPreprocessing as GivenPreprocessing
from finetune.config.model import ModelConfig as ModelConfig
from finetune.config.model import PreprocessingConfig as PreprocessingConfig
from finetune.config.model_registry import family_of
from finetune.config.optimizer import OptimizerConfig as OptimizerConfig
from finetune.config.optimizer import ScheduleConfig as ScheduleConfig
from finetune.config.track import TrackConfig as TrackConfig
from finetune.config.tune import TuneConfig as TuneConfig

FORMAT = 1
"""Version of the config format; incremented when keys of old files would change their meaning.

Defaults may change; a run's ``config.yaml`` states every value.
"""


class StageFreeze(Section):
    """Frozen parameters and norm statistics of a run or a stage."""

    patterns: Annotated[tuple[str, ...], BeforeValidator(tuple_of)] = ("*",)
    """Globs over the pretrained model's parameter names; the last match applies; ! unfreezes."""
    norm_stats: Literal["keep", "update"] = "keep"
    """Handling of the running statistics of norm layers whose parameters are all frozen."""

    @field_validator("patterns")
    @classmethod
    def _patterns_say_something(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for position, pattern in enumerate(patterns, start=1):
            if not pattern.removeprefix("!").strip():
                raise InvalidError(f"pattern {position} is empty: {pattern!r}")
            one_line(pattern)
        return patterns


class FreezeConfig(StageFreeze):
    """Frozen parameters and norm statistics of a run."""

    may_differ: bool = False
    """Whether model.weights may be a finetune run that froze other parameters."""


class EarlyStoppingConfig(Section):
    """Early stopping."""

    patience: int = Field(ge=1)
    """Number of epochs without a better train.monitor before training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Minimum improvement, exclusive; accuracies are fractions."""


class TrainConfig(Section):
    """Length of training, loss and steps, choice of the best epoch, and checkpoints."""

    epochs: CountOrAuto = AUTO
    """Number of epochs; auto: by the number of training images."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the target spread over all classes (Szegedy et al. 2015)."""
    monitor: Literal["top1", "balanced_accuracy", "macro_f1", "loss"] = "top1"
    """Validation metric that selects the best epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    """Early stopping by ``monitor``."""
    accumulate: int = Field(default=1, ge=1, le=MOST)
    """Gradient accumulation: number of batches per optimizer step."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Maximum norm of the gradient over all parameters; larger gradients are scaled down."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an EMA of the weights; the EMA weights are evaluated and saved."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Maximum time between checkpoints in minutes; then one is written whatever it costs, also
    within an epoch."""
    budget: Duration | None = None
    """Time that ``recipe: auto`` may take in total, such as 90s, 15m or 1.5h."""


def _is_this_format(given: int) -> int:
    if given != FORMAT:
        raise InvalidError(f"must be {FORMAT}, not {given}")
    return given


Precision = Literal["float32", "bfloat16"]
FrozenPrecision = Literal["float32", "bfloat16", "float16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Switch = Literal["on", "off"]
Device = Literal["cpu", "cuda", "mps"]
Cache = Literal["memory", "disk", "off"]


class StageRuntime(Section):
    """Compute formats of a run or a stage."""

    precision: Literal["auto", FrozenPrecision] = "auto"
    """Precision of the frozen prefix; auto times what the device supports and uses the fastest."""
    memory_format: Literal["auto", MemoryFormat] = "auto"
    """Memory format of the frozen prefix; auto times both and uses the faster."""
    live_precision: Literal["auto", Precision] = "auto"
    """Precision of the trainable part (weights stay float32); auto: like precision, or timed."""
    live_memory_format: Literal["auto", MemoryFormat] = "auto"
    """Memory format of the trainable part; auto: like memory_format, or timed."""
    compile: Literal["auto", Switch] = "auto"
    """Whether the trainable part uses torch.compile; auto: on CUDA, if the run is long enough."""
    norms: Literal["together", "apart"] = "together"
    """Statistics of batch norms that train, in a run of several processes: of the whole batch, or
    of each process's share."""


class RuntimeConfig(StageRuntime):
    """Device and compute formats of a run."""

    device: Literal["auto", Device] = "auto"
    """Device; auto: a GPU where there is one."""


class StageFeatures(Section):
    """Caching of the frozen prefix's outputs in a run or a stage."""

    cache: Literal["auto", Cache] = "auto"
    """Feature cache; auto: on disk if the features fit and caching saves time."""


class FeaturesConfig(StageFeatures):
    """Caching of the frozen prefix's outputs in a run."""

    dir: LocalPath | None = None
    """Cache folder; default: the user's cache folder."""
    known_by: Literal["time", "content"] = "time"
    """How the cache identifies photos: by path, size, times and inode, or by SHA-256 of the
    content."""


class StageConfig(Section):
    """Stage of a run, with its own freezing; missing keys are taken from the base config."""

    epochs: CountOrAuto = AUTO
    """Number of epochs; default: train.epochs."""
    freeze: StageFreeze = Field(default_factory=StageFreeze)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    features: StageFeatures = Field(default_factory=StageFeatures)
    runtime: StageRuntime = Field(default_factory=StageRuntime)


Recipe = Literal[
    "auto", "linear_probe", "last_block", "head_then_all", "full", "norm_only", "bias_only"
]
"""Named recipes, defined in `finetune.recipes.named`; auto is the ladder of
`finetune.recipes.ladder`."""

CHOSEN_BY_LADDER = ("freeze.patterns", "stages", "adapt", "optimizer", "schedule", "train.epochs")
"""Keys that ``recipe: auto`` chooses itself."""


class Config(Section):
    """Complete config of a run."""

    format: Annotated[int, AfterValidator(_is_this_format)] = FORMAT
    """Version of the config format."""
    model: ModelConfig
    recipe: Recipe | None = None
    """Named recipe, which replaces freeze.patterns or stages; auto: as much as train.budget
    allows."""
    freeze: FreezeConfig = Field(default_factory=FreezeConfig)
    adapt: AdaptConfig | None = None
    """Trainable adapters on frozen weights."""
    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate({}))
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig.model_validate({}))
    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(tuple_of)] = ()
    """Stages, trained in order; if empty, the run is a single stage. Every stage contains all keys,
    including those taken from the base."""
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    tune: TuneConfig | None = None
    """Search space; used only by `finetune tune`."""
    track: TrackConfig | None = None
    """Experiment trackers; used only by `finetune train`."""
    output_dir: Annotated[LocalPath, AfterValidator(os.path.expanduser)]
    """Run directory for checkpoints, metrics and reports."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the new head, of the order and augmentation of images, and of images held out."""

    @model_validator(mode="before")
    @classmethod
    def _stages_are_whole(cls, values: Any) -> Any:
        return stage_inheritance.filled(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _a_recipe_decides_alone(self) -> Config:
        if self.recipe and self.stages:
            raise InvalidError(
                f"{self.recipe} determines what is trained in each epoch, and so do stages",
                key="recipe",
                to_do="remove recipe or stages",
                kind="config.conflict",
            )
        if self.recipe and "patterns" in self.freeze.model_fields_set:
            raise InvalidError(
                f"{self.recipe} determines which parameters are trained, and so does "
                "freeze.patterns",
                key="recipe",
                to_do="remove recipe or freeze.patterns",
                kind="config.conflict",
            )
        return self

    @model_validator(mode="after")
    def _a_budget_is_spent_by_the_ladder(self) -> Config:
        if self.recipe != AUTO:
            if self.train.budget is not None:
                raise NoEffectError(
                    "train.budget",
                    " without recipe: auto, which decides how to spend it",
                    to_do="set recipe: auto, or remove it",
                )
            return self
        if self.train.budget is None:
            raise InvalidError(
                "auto depends on the time that training may take, and train.budget is missing",
                key="recipe",
                to_do="set it, as in train: {budget: 15m}",
                kind="config.missing_key",
            )
        for key in CHOSEN_BY_LADDER:
            if self._is_given(key):
                raise InvalidError(
                    f"auto chooses {key}, which is given too",
                    key="recipe",
                    to_do=f"remove {key}, or set another recipe, as in --set recipe=linear_probe",
                    kind="config.conflict",
                )
        return self

    def _is_given(self, key: str) -> bool:
        section, _, inner = key.partition(".")
        if not inner:
            return section in self.model_fields_set and bool(getattr(self, section))
        held = getattr(self, section)
        return inner in held.model_fields_set and getattr(held, inner) != AUTO

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        for at, length, part in self._parts():
            if length != AUTO and part.schedule.warmup_exceeds(length):
                raise InvalidError(
                    f"{part.schedule.warmup_epochs:g} is longer than {at or 'train.'}epochs, "
                    f"{length}",
                    key=f"{at}schedule.warmup_epochs",
                )
        return self

    @model_validator(mode="after")
    def _plateau_comes_before_the_end(self) -> Config:
        stopping = self.train.early_stopping
        for at, _, part in self._parts():
            patience = part.schedule.patience
            if not (stopping and patience and stopping.patience <= patience):
                continue
            raise NoEffectError(
                f"{at}schedule.patience",
                f": {patience} epochs, but train.early_stopping ends training after "
                f"{stopping.patience} epochs without improvement",
                to_do="lower it, or raise train.early_stopping.patience",
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_not_averaged(self) -> Config:
        if self.adapt and self.train.ema is not None:
            raise InvalidError(
                "cannot be combined with adapt: averaging the LoRA factors does not average "
                "their product",
                key="train.ema",
                to_do="remove one of them",
                kind="config.conflict",
            )
        return self

    @model_validator(mode="after")
    def _adapted_network_has_attention(self) -> Config:
        if self.adapt and family_of(self.model.name).name not in ADAPTED_FAMILIES:
            raise InvalidError(
                f"LoRA supports {', '.join(ADAPTED_FAMILIES)}, not {self.model.name}",
                key="adapt",
                to_do="remove adapt, and unfreeze layers with freeze.patterns instead",
                kind="config.conflict",
            )
        return self

    @model_validator(mode="after")
    def _whole_photos_are_not_cropped(self) -> Config:
        fit = self.data.fit
        for at, _, part in self._parts():
            if fit != "crop" and part.augment.policy == "crop_flip":
                raise InvalidError(
                    f"crop_flip would crop photos that data.fit: {fit} keeps whole",
                    key=f"{at}augment.policy",
                    to_do="use flip, or trivial, randaugment or autoaugment, which do not "
                    "crop then",
                    kind="config.conflict",
                )
        return self

    def _parts(self) -> Iterator[tuple[str, int | Literal["auto"], Config | StageConfig]]:
        """Yield the key prefix, the number of epochs and the sections of each stage, or of the
        run."""
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
            if "optimizer" not in self.model_fields_set:
                del values["optimizer"]  # the recipe chooses it
            if self.recipe == AUTO:
                values.pop("schedule", None)
                del values["train"]["epochs"]
        return values

    def plain(self) -> dict[str, Any]:
        """Return the config as plain values for YAML or JSON, without keys that have no effect."""
        values = self.model_dump(mode="json", exclude_none=True)
        if self.stages:
            return stage_inheritance.without_base(values)
        del values["stages"]
        return values
