"""What every section of the config is made of; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


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


Text = Annotated[str, AfterValidator(one_line)]
