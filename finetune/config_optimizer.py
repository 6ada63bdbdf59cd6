"""The config's sections ``optimizer`` and ``schedule``: how what trains moves; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from finetune.config_section import (
    AUTO,
    LARGEST_RATE,
    LARGEST_SHARE,
    MOST,
    RateOrAuto,
    Section,
    ShareOrAuto,
    one_line,
    tuple_of,
)
from finetune.errors import did_you_mean


@dataclass(frozen=True)
class Known:
    """A class of ``torch.optim``, without torch; a test compares all of them with torch's own.

    Attributes:
        defaults: Of this section's keys: torch's, but for SGD, whose momentum is 0 there.
        state: Tensors of a parameter's size that it keeps beside momentum.
        refused: Why it cannot train here.
    """

    name: str
    defaults: dict[str, float] = field(default_factory=dict)
    state: int = 0
    refused: str = ""


OPTIMIZERS = {
    known.name.lower(): known
    for known in (
        Known("Adadelta", {"lr": 1.0, "weight_decay": 0.0}, 2),
        # Rows and columns instead of a tensor (Shazeer and Stern 2018).
        Known("Adafactor", {"lr": 0.01, "weight_decay": 0.0}, 0),
        Known("Adagrad", {"lr": 0.01, "weight_decay": 0.0}, 1),
        Known("Adam", {"lr": 0.001, "weight_decay": 0.0}, 2),
        Known("Adamax", {"lr": 0.002, "weight_decay": 0.0}, 2),
        Known("AdamW", {"lr": 0.001, "weight_decay": 0.01}, 2),
        Known("ASGD", {"lr": 0.01, "weight_decay": 0.0}, 1),
        Known(
            "LBFGS",
            refused="it measures the loss several times in a step, on all images at once; training "
            "here takes one gradient from each batch",
        ),
        Known("Muon", {"lr": 0.001, "weight_decay": 0.1, "momentum": 0.95}),
        Known("NAdam", {"lr": 0.002, "weight_decay": 0.0}, 2),
        Known("RAdam", {"lr": 0.001, "weight_decay": 0.0}, 2),
        Known("RMSprop", {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.0}, 1),
        Known("Rprop", {"lr": 0.01, "weight_decay": 0.0}, 2),
        Known("SGD", {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9}),
        Known("SparseAdam", refused="it takes sparse gradients, which no image classifier has"),
    )
}

RATED = frozenset({"sgd", "adam", "adamw", "adamax", "nadam", "radam"})
"""Optimizers whose learning rate there is a rule for, in `finetune.recipe`."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    name: known.defaults | ({"lr": AUTO} if name in RATED else {})
    for name, known in OPTIMIZERS.items()
    if not known.refused
} | {AUTO: {"lr": AUTO, "weight_decay": AUTO}}

NO_OPTIONS = {
    "params": "is what freeze.patterns leaves trainable",
    "lr": "is a key of its own: optimizer.lr",
    "weight_decay": "is a key of its own: optimizer.weight_decay",
    "momentum": "is a key of its own: optimizer.momentum",
    "maximize": "would make the loss as large as possible",
    "differentiable": "is for gradients through the optimizer itself, which nothing takes here",
    "capturable": "is for CUDA graphs, which are not used here",
}
"""What is no option of a class, and why."""


def with_defaults_of(defaults: dict[str, dict[str, Any]], default_name: str, value: Any) -> Any:
    """Fill in what the section's ``name`` implies, so that a resolved config states it."""
    if not isinstance(value, dict):
        return value
    name = value.get("name", default_name)
    # Where the name itself is wrong, that alone is to be reported.
    known = isinstance(name, str) and name in defaults
    implied = defaults[name if known else default_name]
    return {"name": default_name} | implied | value


def refuse_foreign(section: Section, name: str, own: dict[str, dict[str, Any]]) -> None:
    """An option that cannot take effect is refused, not ignored."""
    optional = {key for options in own.values() for key in options}
    for key in sorted(optional - own[name].keys()):
        if getattr(section, key) is not None:
            owners = " and ".join(other for other, options in own.items() if key in options)
            raise ValueError(f"{key}: has no effect on {name}; it belongs to {owners}")
    for key in own[name]:
        if getattr(section, key) is None:
            raise ValueError(f"{key}: is empty; give it a value or remove the line")


class GroupConfig(Section):
    """Parameters that move in a way of their own."""

    match: Annotated[tuple[str, ...], BeforeValidator(tuple_of)]
    """Globs over parameter names; the last group that matches a parameter decides."""
    lr: float | None = Field(default=None, gt=0, le=LARGEST_RATE)
    """Instead of optimizer.lr and its layer_decay."""
    lr_scale: float | None = Field(default=None, gt=0, le=LARGEST_SHARE)
    """Factor of the learning rate that these parameters would have otherwise."""
    weight_decay: float | None = Field(default=None, ge=0, le=LARGEST_SHARE)
    """Of all of them, norms and biases too."""

    @field_validator("match")
    @classmethod
    def _globs_say_something(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        if not globs:
            raise ValueError("must hold at least one glob")
        for position, glob in enumerate(globs, start=1):
            if glob.startswith("!"):
                raise ValueError(f"{glob!r}: there is no ! here; a later group overrules this one")
            if not glob.strip():
                raise ValueError(f"glob {position} is empty: {glob!r}")
            one_line(glob)
        return globs

    @model_validator(mode="after")
    def _does_something(self) -> GroupConfig:
        if self.lr is not None and self.lr_scale is not None:
            raise ValueError("lr_scale: give either it or lr")
        if self.lr is None and self.lr_scale is None and self.weight_decay is None:
            raise ValueError("give it lr, lr_scale or weight_decay; else it is no group of its own")
        return self


class OptimizerConfig(Section):
    """How the trainable parameters move."""

    name: str = "sgd"
    """A class of torch.optim in any case; auto: sgd, or adamw for the families trained by it."""
    lr: RateOrAuto
    """Peak learning rate, per optimizer step. auto, the default where there is a rule: by what
    trains, and by the images of a step; else torch's."""
    weight_decay: ShareOrAuto
    """Default 0 for sgd, 0.01 for adamw, else torch's."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """sgd only (default 0.9), rmsprop (0) and muon (0.95)."""
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """Factor of the learning rate for each layer below the head (Clark et al. 2020)."""
    decay_norms_and_biases: bool = False
    """Weight decay on norms, biases, and a transformer's tokens and position tables as well."""
    groups: Annotated[tuple[GroupConfig, ...], BeforeValidator(tuple_of)] = ()
    """Parameters with a learning rate or weight decay of their own."""
    options: dict[str, Any] | None = None
    """Further arguments of the class."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            lower = value["name"].lower()
            value = value | {"name": lower if lower in OPTIMIZERS else value["name"]}
        return with_defaults_of(_DEFAULTS, "sgd", value)

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        refused = OPTIMIZERS[name].refused if name in OPTIMIZERS else ""
        if refused:
            raise ValueError(f"{OPTIMIZERS[name].name} cannot train here: {refused}")
        if name not in _DEFAULTS:
            raise ValueError(
                f"{name!r} is no optimizer of torch.optim.{did_you_mean(name, _DEFAULTS)} "
                f"Here: {', '.join(_DEFAULTS)}."
            )
        return name

    @field_validator("options")
    @classmethod
    def _options_are_plain(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        for key, value in (options or {}).items():
            if key in NO_OPTIONS:
                raise ValueError(f"{key} {NO_OPTIONS[key]}")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, float) and not math.isfinite(part):
                    raise ValueError(f"{key}: must be a finite number, not {part}")
        return options

    @model_validator(mode="after")
    def _only_own_options(self) -> OptimizerConfig:
        refuse_foreign(self, self.name, _DEFAULTS)
        if self.options and self.name == AUTO:
            raise ValueError("options: are of one class; name it instead of auto")
        if self.name == "rprop" and (
            self.weight_decay != 0 or any(group.weight_decay for group in self.groups)
        ):
            raise ValueError("weight_decay: has no effect on rprop, which has none")
        return self

    @property
    def state_tensors(self) -> int:
        """Tensors of a parameter's size that the optimizer keeps."""
        own = OPTIMIZERS[self.name].state if self.name != AUTO else 0
        options = self.options or {}
        return own + sum(bool(on) for on in (self.momentum, *map(options.get, KEEPING)))


KEEPING = ("amsgrad", "centered")
"""Options that make an optimizer keep one more tensor of each parameter."""


class ScheduleConfig(Section):
    """How the learning rate changes, step by step; groups keep their ratio."""

    name: Literal["constant", "cosine", "step", "one_cycle", "plateau"] = "cosine"
    warmup_epochs: ShareOrAuto = AUTO
    """Linear rise from a hundredth of the peak, in epochs; auto: by what trains."""
    step_epochs: int | None = Field(default=None, ge=1, le=MOST)
    """step only: epochs between drops; default 7."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """step and plateau only: factor of each drop; default 0.1."""
    patience: int | None = Field(default=None, ge=1)
    """plateau only: epochs without a better train.monitor after which it drops; default 3."""
    rise: float | None = Field(default=None, gt=0, lt=1)
    """one_cycle only: share of the steps in which it rises from a 25th of the peak; default 0.3."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return with_defaults_of(_SCHEDULES, "cosine", value)

    @model_validator(mode="after")
    def _only_own_options(self) -> ScheduleConfig:
        refuse_foreign(self, self.name, _SCHEDULES)
        if self.name == "one_cycle" and self.warmup_epochs not in (0, AUTO):
            raise ValueError("warmup_epochs: one_cycle rises by itself; its share is schedule.rise")
        if self.name == "plateau" and self.gamma == 1:
            raise ValueError("gamma: must be below 1 to drop")
        return self

    def warmup_problem(self, epochs: int) -> str:
        """What is wrong with the warm-up of a run of so many epochs, if anything."""
        if self.warmup_epochs == AUTO or self.warmup_epochs <= epochs:
            return ""
        return (
            f"schedule.warmup_epochs: {self.warmup_epochs:g} is longer than train.epochs, {epochs}"
        )


_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {},
    "step": {"step_epochs": 7, "gamma": 0.1},
    "one_cycle": {"rise": 0.3},
    "plateau": {"gamma": 0.1, "patience": 3},
}
