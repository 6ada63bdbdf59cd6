"""Base class and value types of the config's sections; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from finetune.core.errors import address_problem

AUTO = "auto"
MOST = 1_000_000
"""Upper bound of counts (epochs, steps, images), to catch typos."""
LARGEST_RATE, LARGEST_SHARE = 1e30, 1e6
"""Upper bounds of a learning rate and a weight decay; both and their product must fit float32."""


class Section(BaseModel):
    """Base class of config sections: strict, frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def tuple_of(value: Any) -> Any:
    """Convert a list to a tuple; return other values unchanged, to be rejected by pydantic."""
    return tuple(value) if isinstance(value, list) else value


def one_line(text: str) -> str:
    """Return ``text`` if it is not empty and printable.

    Raises:
        ValueError: The text is empty or contains an unprintable character.
    """
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a character that cannot be printed")
    return text


def local(text: str) -> str:
    """Return ``text`` if it can be a local path.

    Raises:
        ValueError: The text is a URL.
    """
    if problem := address_problem(text):
        raise ValueError(problem)
    return text


Text = Annotated[str, AfterValidator(one_line)]
LocalPath = Annotated[Text, AfterValidator(local)]

if TYPE_CHECKING:
    # `finetune.recipes.auto` replaces "auto" by a number before the value is used.
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
