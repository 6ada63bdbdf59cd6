"""Base class and value types of the config's sections; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from finetune.core.errors import ConfigError, Problem, address_problem, worded
from finetune.core.text import printable

_Section = TypeVar("_Section", bound="Section")

AUTO: Final = "auto"
MOST = 1_000_000
"""Upper bound of counts (epochs, steps, images), to catch typos."""
LARGEST_RATE, LARGEST_SHARE = 1e30, 1e6
"""Upper bounds of a learning rate and a weight decay; both and their product must fit float32."""


class Section(BaseModel):
    """Base class of config sections: strict, frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def with_values(self: _Section, values: Mapping[str, Any]) -> _Section:
        """Return a copy with other values, validated like a config file.

        Args:
            values: Values by dotted key, such as ``train.epochs`` or ``stages.0.epochs``.

        Raises:
            ConfigError: A key is unknown or a value is invalid; the message names the key.
        """
        return _validated(type(self), _opened(self), values)

    def resolved_as(self, kind: type[_Section], values: Mapping[str, Any]) -> _Section:
        """Return a copy of another type, whose sections have narrower types than this one's.

        Args:
            kind: Subclass that does not permit ``auto`` in some of its sections.
            values: Values by dotted key that replace this config's.

        Raises:
            ConfigError: A value is invalid, or ``auto`` is left where ``kind`` does not permit it.
        """
        opened = {
            key: _opened(value) if isinstance(value, Section) else value
            for key, value in _opened(self).items()
        }
        return _validated(kind, opened, values)


def _validated(kind: type[_Section], opened: dict[str, Any], values: Mapping[str, Any]) -> _Section:
    """Set values at dotted keys of an opened section, and validate the result."""
    for key, value in values.items():
        _set(opened, key, value)
    try:
        return kind.model_validate(opened)
    except ValidationError as error:
        # The wording names keys of the whole schema, which imports this module.
        from finetune.config.error_messages import problems_of

        problems = [
            Problem(it.kind, it.what, it.to_do or None, key=".".join(map(str, it.path)) or None)
            for it in problems_of(error)
        ]
        raise ConfigError.of(problems, kind="config.several_problems") from error


def _set(opened: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key; the sections and lists on the way are copied first."""
    parts = [int(part) if part.isdecimal() else part for part in key.split(".")]
    holder: Any = opened
    in_list = False
    for part in parts[:-1]:
        in_list = in_list or isinstance(holder, list)
        inner = _inner(holder, part, key)
        if isinstance(inner, Section):
            # Complete in a list: a stage takes from the base what it lacks.
            inner = dict(inner) if in_list else _opened(inner)
        elif isinstance(inner, tuple | list):
            inner = list(inner)
        else:  # else an absent section, or no section at all, which validation reports
            inner = dict(inner) if isinstance(inner, dict) else {}
        holder[part] = inner
        holder = inner
    _inner(holder, parts[-1], key)  # raises for an index out of range
    holder[parts[-1]] = value


def _inner(holder: dict[str, Any] | list[Any], part: str | int, key: str) -> Any:
    """Return the value at one part of a key; None if a section lacks it."""
    if isinstance(holder, dict):
        return holder.get(str(part))
    if not isinstance(part, int) or part >= len(holder):
        raise ConfigError(
            f"the list has no item {part}: its {len(holder)} items count from 0",
            kind="config.not_a_section",
            key=key,
        )
    return holder[part]


def _opened(section: Section) -> dict[str, Any]:
    """Return the values of a section that differ from its defaults or were given."""
    return {key: value for key, value in section if key in section.model_fields_set}


class InvalidError(ValueError):
    """A validator's finding, which pydantic passes on in its own error.

    The fields are those of `finetune.core.errors.FinetuneError`; ``key`` is relative to the
    section whose validator raises.
    """

    source = path = line = also = None

    def __init__(
        self, what: str, *, key: str = "", to_do: str = "", kind: str = "config.invalid_value"
    ) -> None:
        super().__init__(what)
        self.what, self.key, self.to_do, self.kind = what, key, to_do.strip(), kind

    def __str__(self) -> str:
        return worded(self)


class NoEffectError(InvalidError):
    """A key whose value would change nothing."""

    def __init__(self, key: str, why: str, *, to_do: str = "") -> None:
        super().__init__(f"has no effect{why}", key=key, to_do=to_do, kind="config.no_effect")


def tuple_of(value: Any) -> Any:
    """Convert a list to a tuple; return other values unchanged, to be rejected by pydantic."""
    return tuple(value) if isinstance(value, list) else value


def one_line(text: str) -> str:
    """Return ``text`` if it is not empty and printable.

    Raises:
        InvalidError: The text is empty or contains an unprintable character.
    """
    if not text.strip():
        raise InvalidError("must not be empty")
    if not text.isprintable():
        raise InvalidError(f"{text!r} contains an unprintable character")
    return text


def local(text: str) -> str:
    """Return ``text`` if it can be a local path.

    Raises:
        InvalidError: The text is a URL.
    """
    if problem := address_problem(text):
        raise InvalidError(problem.what, to_do=problem.to_do or "", kind=problem.kind)
    return text


Text = Annotated[str, AfterValidator(one_line)]
LocalPath = Annotated[Text, AfterValidator(local)]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> str:
    """Return ``text`` if it is a duration, such as 90s, 15m or 1.5h.

    Raises:
        InvalidError: It is not a positive number with one of these units.
    """
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?[smh]", text) or not seconds_of(text):
        raise InvalidError(
            f"must be a duration such as 90s, 15m or 1.5h, not {printable(text)!r}",
        )
    return text


def seconds_of(text: str) -> float:
    """Return the seconds of a `Duration`."""
    return float(text[:-1]) * _UNITS[text[-1]]


Duration = Annotated[str, AfterValidator(duration)]
"""A number with a unit: s, m or h."""

Count = Annotated[int, Field(ge=1, le=MOST)]
"""A whole number from 1."""
Rate = Annotated[float, Field(gt=0, le=LARGEST_RATE)]
"""A number above 0."""
Share = Annotated[float, Field(ge=0, le=LARGEST_SHARE)]
"""A number from 0."""

_AUTO = Annotated[Literal["auto"], Tag("auto")]
_BY_TAG = Discriminator(lambda value: "auto" if value == AUTO else "number")
"""Chooses between the two before validation, so that only one of them reports a problem."""

CountOrAuto = Annotated[_AUTO | Annotated[Count, Tag("number")], _BY_TAG]
RateOrAuto = Annotated[_AUTO | Annotated[Rate, Tag("number")], _BY_TAG]
ShareOrAuto = Annotated[_AUTO | Annotated[Share, Tag("number")], _BY_TAG]
