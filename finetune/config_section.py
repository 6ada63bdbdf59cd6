"""What every section of the config is made of; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from finetune.errors import address_problem

AUTO = "auto"
MOST = 1_000_000
"""Of what is counted: epochs, steps, images. More is a mistake, and nothing computes with it."""
LARGEST_RATE, LARGEST_SHARE = 1e30, 1e6
"""Of a learning rate, and of a weight decay: torch computes with neither beyond float32, nor with
their product."""


class Section(BaseModel):
    """A part of the config: closed (unknown keys are refused), strict and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def tuple_of(value: Any) -> Any:
    """A list of the file as a tuple; anything else as it is, for the next check to refuse."""
    return tuple(value) if isinstance(value, list) else value


def one_line(text: str) -> str:
    """Text that can be shown.

    Raises:
        ValueError: it is empty, or holds what cannot be printed.
    """
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a character that cannot be printed")
    return text


def local(text: str) -> str:
    """Text that can be a path.

    Raises:
        ValueError: it is an address of another machine.
    """
    if problem := address_problem(text):
        raise ValueError(problem)
    return text


Text = Annotated[str, AfterValidator(one_line)]
LocalPath = Annotated[Text, AfterValidator(local)]

if TYPE_CHECKING:
    # A number by the time that anything computes with it: `finetune.defaults` resolves the word.
    CountOrAuto = Any
    RateOrAuto = Any
    ShareOrAuto = Any
else:

    def _or_auto(kind: Any) -> Any:
        tagged = Annotated[Literal["auto"], Tag("auto")] | Annotated[kind, Tag("number")]
        return Annotated[tagged, Discriminator(lambda v: "auto" if v == AUTO else "number")]

    CountOrAuto = _or_auto(Annotated[int, Field(ge=1, le=MOST)])
    """A whole number from 1, or auto."""
    RateOrAuto = _or_auto(Annotated[float, Field(gt=0, le=LARGEST_RATE)])
    """A number above 0, or auto."""
    ShareOrAuto = _or_auto(Annotated[float, Field(ge=0, le=LARGEST_SHARE)])
    """A number from 0, or auto."""
