"""Config section ``tune``: search space, folds and metric; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune.config.base import MOST, InvalidError, Section


class Range(Section):
    """Range of values: log-uniform if ``min`` is above 0, else uniform."""

    min: float = Field(ge=0)
    """Smallest value."""
    max: float = Field(gt=0)
    """Largest value."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Range:
        if self.min >= self.max:
            raise InvalidError(f"must be below max, {self.max:g}, not {self.min:g}", key="min")
        return self


def _kind(value: Any) -> str:
    return "section" if isinstance(value, dict | Range) else "word"


def _listed(value: Any) -> Any:
    """Convert a list, or a single value, to a tuple."""
    if isinstance(value, list | tuple):
        if not value:
            raise InvalidError(
                "must contain at least one value",
                to_do="remove the key to search its default values",
            )
        return tuple(value)
    return (value,)


Values = tuple[float, ...] | Range
Numbers = Annotated[
    Annotated[tuple[float, ...], BeforeValidator(_listed), Tag("word")]
    | Annotated[Range, Tag("section")],
    Discriminator(_kind),
]
Whole = Annotated[tuple[Annotated[int, Field(ge=1, le=MOST)], ...], BeforeValidator(_listed)]
Name = Literal["sgd", "adamw"]
_BOUNDS = {"lr": (0.0, float("inf")), "weight_decay": (-1.0, 1e3), "label_smoothing": (-1.0, 1.0)}
"""Exclusive bounds of each key's values."""


def _folds(value: Any) -> Any:
    if value == "auto" or (type(value) is int and (value == 0 or 2 <= value <= 100)):
        return value
    raise InvalidError(
        f"must be auto, 0 (the validation split) or a whole number from 2 to 100, not {value!r}"
    )


class TuneConfig(Section):
    """Search space of `finetune tune`; hyperparameters are lists of values, or ``{min, max}``."""

    trials: int | None = Field(default=None, ge=1, le=10_000)
    """Number of trials of the first round, including the config's own values; default: 64 if only
    the head is trained, else 12."""
    folds: Annotated[int | Literal["auto"], BeforeValidator(_folds)] = "auto"
    """Number of cross-validation folds on the training images; 0 selects on the validation split.
    auto: 5 for small sets, else 0."""
    metric: Literal["top1", "balanced_accuracy", "macro_f1", "loss"] | None = None
    """Selection metric; among trials within one standard error of the best, the one with the lowest
    loss is selected. Default: train.monitor."""
    optimizer: Annotated[tuple[Name, ...], BeforeValidator(_listed)] = ("sgd", "adamw")
    """Optimizers to try."""
    lr: Numbers | None = None
    """Learning rates; default: by the optimizer and the trainable parameters."""
    weight_decay: Numbers | None = None
    """Weight decays; default: by the optimizer."""
    label_smoothing: Numbers | None = None
    """Fractions of the target spread over all classes; default: train.label_smoothing."""
    batch_size: Whole | None = None
    """Batch sizes; default: data.batch_size."""
    epochs: Whole | None = None
    """Numbers of epochs; default: train.epochs."""

    @field_validator("lr", "weight_decay", "label_smoothing")
    @classmethod
    def _values_are_possible(cls, values: Values | None, info: ValidationInfo) -> Values | None:
        above, below = _BOUNDS[str(info.field_name)]
        ends = (values.min, values.max) if isinstance(values, Range) else values or ()
        for value in ends:
            if not above < value < below:
                words = "above 0" if above == 0 else f"from 0 to below {below:g}"
                raise InvalidError(f"every value must be {words}, not {value:g}")
        return values
