"""Config sections ``optimizer`` and ``schedule``; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from finetune.config.base import (
    AUTO,
    LARGEST_RATE,
    LARGEST_SHARE,
    MOST,
    InvalidError,
    NoEffectError,
    RateOrAuto,
    Section,
    ShareOrAuto,
    one_line,
    tuple_of,
)
from finetune.core.text import did_you_mean


@dataclass(frozen=True)
class Known:
    """Facts about an optimizer class of ``torch.optim``; a test compares them with torch.

    Attributes:
        name: Name of the class.
        defaults: Default values of this section's keys: torch's, except momentum 0.9 for SGD.
        state: Number of state tensors of a parameter's size, without the momentum buffer.
        refused: Reason why the class is not supported; empty if it is.
    """

    name: str
    defaults: dict[str, float] = field(default_factory=dict)
    state: int = 0
    refused: str = ""


OPTIMIZERS = {
    known.name.lower(): known
    for known in (
        Known("Adadelta", {"lr": 1.0, "weight_decay": 0.0}, 2),
        # Its second moment is factored into rows and columns (Shazeer and Stern 2018).
        Known("Adafactor", {"lr": 0.01, "weight_decay": 0.0}, 0),
        Known("Adagrad", {"lr": 0.01, "weight_decay": 0.0}, 1),
        Known("Adam", {"lr": 0.001, "weight_decay": 0.0}, 2),
        Known("Adamax", {"lr": 0.002, "weight_decay": 0.0}, 2),
        Known("AdamW", {"lr": 0.001, "weight_decay": 0.01}, 2),
        Known("ASGD", {"lr": 0.01, "weight_decay": 0.0}, 1),
        Known(
            "LBFGS",
            refused="it evaluates the loss several times per step, on all images; finetune "
            "computes one gradient per batch",
        ),
        Known("Muon", {"lr": 0.001, "weight_decay": 0.1, "momentum": 0.95}),
        Known("NAdam", {"lr": 0.002, "weight_decay": 0.0}, 2),
        Known("RAdam", {"lr": 0.001, "weight_decay": 0.0}, 2),
        Known("RMSprop", {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.0}, 1),
        Known("Rprop", {"lr": 0.01, "weight_decay": 0.0}, 2),
        Known("SGD", {"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9}),
        Known("SparseAdam", refused="it needs sparse gradients, which no image classifier has"),
    )
}

RATED = frozenset({"sgd", "adam", "adamw", "adamax", "nadam", "radam"})
"""Optimizers for which `finetune.recipes.heuristics` has a learning-rate rule."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    name: known.defaults | ({"lr": AUTO} if name in RATED else {})
    for name, known in OPTIMIZERS.items()
    if not known.refused
} | {AUTO: {"lr": AUTO, "weight_decay": AUTO}}

NO_OPTIONS = {
    "params": "is determined by freeze.patterns",
    "lr": "is set by optimizer.lr",
    "weight_decay": "is set by optimizer.weight_decay",
    "momentum": "is set by optimizer.momentum",
    "maximize": "would maximize the loss",
    "differentiable": "is for gradients through the optimizer, which finetune does not compute",
    "capturable": "is for CUDA graphs, which finetune does not use",
}
"""Arguments of optimizer classes that ``optimizer.options`` must not contain, with the reason."""


def with_defaults_of(defaults: dict[str, dict[str, Any]], default_name: str, value: Any) -> Any:
    """Fill in the defaults that the section's ``name`` implies, so that they appear in the resolved
    config."""
    if not isinstance(value, dict):
        return value
    name = value.get("name", default_name)
    # If the name is invalid, only that is to be reported.
    known = isinstance(name, str) and name in defaults
    implied = defaults[name if known else default_name]
    return {"name": default_name} | implied | value


def _default_name(given: Any) -> str:
    """Return the name that the other values of a section imply.

    A learning rate, also that of a group, a momentum or options belong to one optimizer, which is
    sgd if it is not named.
    """
    if not isinstance(given, Mapping):
        return AUTO
    groups = given.get("groups")
    own = [
        given.get("lr", AUTO) != AUTO,
        given.get("momentum") is not None,
        given.get("options"),
        isinstance(groups, list | tuple) and any(_has_rate(group) for group in groups),
    ]
    return "sgd" if any(own) else AUTO


def _has_rate(group: Any) -> bool:
    given = group if isinstance(group, Mapping) else getattr(group, "__dict__", {})
    return given.get("lr") is not None


def refuse_foreign(section: Section, name: str, own: dict[str, dict[str, Any]]) -> None:
    """Raise an `InvalidError` for options that have no effect with ``name``, and for empty ones."""
    optional = {key for options in own.values() for key in options}
    for key in sorted(optional - own[name].keys()):
        if getattr(section, key) is not None:
            owners = " and ".join(other for other, options in own.items() if key in options)
            raise NoEffectError(key, f" on {name}", to_do=f"it belongs to {owners}")
    for key in own[name]:
        if getattr(section, key) is None:
            raise InvalidError("is empty", key=key, to_do="give it a value or remove the line")


class GroupConfig(Section):
    """Parameter group with its own learning rate or weight decay."""

    match: Annotated[tuple[str, ...], BeforeValidator(tuple_of)]
    """Globs over parameter names; the last group that matches a parameter applies."""
    lr: float | None = Field(default=None, gt=0, le=LARGEST_RATE)
    """Learning rate, replacing optimizer.lr and optimizer.layer_decay."""
    lr_scale: float | None = Field(default=None, gt=0, le=LARGEST_SHARE)
    """Factor applied to the learning rate that these parameters would otherwise have."""
    weight_decay: float | None = Field(default=None, ge=0, le=LARGEST_SHARE)
    """Weight decay of all matched parameters, norm layers and biases included."""

    @field_validator("match")
    @classmethod
    def _globs_say_something(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        if not globs:
            raise InvalidError("must contain at least one glob")
        for position, glob in enumerate(globs, start=1):
            if glob.startswith("!"):
                raise InvalidError(
                    f"{glob!r} begins with !, which groups do not support",
                    to_do="list a later group, which takes precedence",
                )
            if not glob.strip():
                raise InvalidError(f"glob {position} is empty: {glob!r}")
            one_line(glob)
        return globs

    @model_validator(mode="after")
    def _does_something(self) -> GroupConfig:
        if self.lr is not None and self.lr_scale is not None:
            raise InvalidError(
                "cannot be combined with lr",
                key="lr_scale",
                to_do="remove one of them",
                kind="config.conflict",
            )
        if self.lr is None and self.lr_scale is None and self.weight_decay is None:
            raise InvalidError(
                "the group sets nothing", to_do="give it lr, lr_scale or weight_decay"
            )
        return self


class OptimizerConfig(Section):
    """Optimizer of the trainable parameters."""

    name: str = AUTO
    """Class of torch.optim, case-insensitive. auto: sgd, or adamw for families trained with it and,
    with lr: auto and 1,000 images or more, where weights of a network with norm layers train beside
    the head's. The default is auto, or sgd beside lr (also of groups), momentum or options."""
    lr: RateOrAuto
    """Peak learning rate. auto, the default of optimizers that have a rule, depends on what is
    trained and on the images per step, or is found by cross-validation where only a head trains on
    cached features; the default of others is torch's."""
    weight_decay: ShareOrAuto
    """Weight decay. auto, the default beside lr: auto, is 0.01 for adamw and 0 for others unless it
    is found together with the rate; the default beside a given rate is torch's."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Momentum; only for sgd (default 0.9), rmsprop (0) and muon (0.95)."""
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """Layer-wise learning-rate decay: factor for each layer below the head (Clark et al. 2020)."""
    decay_norms_and_biases: bool = False
    """Whether weight decay also applies to norm layers, biases, and a transformer's tokens and
    position embeddings."""
    groups: Annotated[tuple[GroupConfig, ...], BeforeValidator(tuple_of)] = ()
    """Parameter groups with their own learning rate or weight decay."""
    options: dict[str, Any] | None = None
    """Further arguments of the optimizer class."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            lower = value["name"].lower()
            value = value | {"name": lower if lower in OPTIMIZERS else value["name"]}
        filled = with_defaults_of(_DEFAULTS, _default_name(value), value)
        if not isinstance(value, dict) or "weight_decay" in value or filled["lr"] != AUTO:
            return filled
        is_rated = isinstance(filled["name"], str) and filled["name"] in RATED
        return filled | ({"weight_decay": AUTO} if is_rated else {})  # both are found together

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        refused = OPTIMIZERS[name].refused if name in OPTIMIZERS else ""
        if refused:
            raise InvalidError(
                f"{OPTIMIZERS[name].name} is not supported: {refused}",
                kind="config.unsupported_optimizer",
            )
        if name not in _DEFAULTS:
            raise InvalidError(
                f"{name!r} is not an optimizer of torch.optim",
                to_do=f"{did_you_mean(name, _DEFAULTS)} Supported: {', '.join(_DEFAULTS)}.",
                kind="config.unknown_optimizer",
            )
        return name

    @field_validator("options")
    @classmethod
    def _options_are_plain(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        for key, value in (options or {}).items():
            if key in NO_OPTIONS:
                raise InvalidError(f"{key} {NO_OPTIONS[key]}", to_do="remove it from options")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, float) and not math.isfinite(part):
                    raise InvalidError(f"{key} must be a finite number, not {part}")
        return options

    @model_validator(mode="after")
    def _only_own_options(self) -> OptimizerConfig:
        refuse_foreign(self, self.name, _DEFAULTS)
        if self.options and self.name == AUTO:
            raise InvalidError(
                "cannot be combined with name: auto, since options belong to one optimizer class",
                key="options",
                to_do="set optimizer.name to that class",
                kind="config.conflict",
            )
        if self.name == "rprop" and (
            self.weight_decay != 0 or any(group.weight_decay for group in self.groups)
        ):
            raise NoEffectError(
                "weight_decay", " on rprop, which has no weight decay", to_do="remove it"
            )
        return self

    @property
    def state_tensors(self) -> int:
        """Number of state tensors of a parameter's size."""
        own = OPTIMIZERS[self.name].state if self.name != AUTO else 0
        options = self.options or {}
        return own + sum(bool(on) for on in (self.momentum, *map(options.get, KEEPING)))


KEEPING = ("amsgrad", "centered")
"""Options that add one state tensor per parameter."""


class ScheduleConfig(Section):
    """Learning-rate schedule, updated every step; parameter groups keep their ratio."""

    name: Literal["constant", "cosine", "step", "one_cycle", "plateau"] = "cosine"
    """Schedule of the learning rate."""
    warmup_epochs: ShareOrAuto = AUTO
    """Length of the linear warm-up from a hundredth of the peak, in epochs; auto: by the trainable
    parameters."""
    step_epochs: int | None = Field(default=None, ge=1, le=MOST)
    """Number of epochs between drops; step only, default 7."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Factor applied at each drop; step and plateau only, default 0.1."""
    patience: int | None = Field(default=None, ge=1)
    """Number of epochs without a better train.monitor before a drop; plateau only, default 3."""
    rise: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of steps in which the rate rises, from 1/25 of the peak; one_cycle only, default
    0.3."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return with_defaults_of(_SCHEDULES, "cosine", value)

    @model_validator(mode="after")
    def _only_own_options(self) -> ScheduleConfig:
        refuse_foreign(self, self.name, _SCHEDULES)
        if self.name == "one_cycle" and self.warmup_epochs not in (0, AUTO):
            raise NoEffectError(
                "warmup_epochs",
                " on one_cycle, which has its own warm-up",
                to_do="set schedule.rise instead",
            )
        if self.name == "plateau" and self.gamma == 1:
            raise InvalidError(
                "must be below 1, or the learning rate would never drop", key="gamma"
            )
        return self

    def warmup_exceeds(self, epochs: int) -> bool:
        """Return whether the warm-up is longer than ``epochs``."""
        return self.warmup_epochs != AUTO and bool(self.warmup_epochs > epochs)


_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {},
    "step": {"step_epochs": 7, "gamma": 0.1},
    "one_cycle": {"rise": 0.3},
    "plateau": {"gamma": 0.1, "patience": 3},
}
