"""Messages for config errors: location, problem and suggested key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Discriminator, ValidationError

from finetune.config.base import InvalidError
from finetune.config.schema import Config, StageConfig
from finetune.config.yaml_loader import Path, Problem
from finetune.core.text import did_you_mean, nearest

_UNION_TAGS = frozenset({"word", "section", "number"})
_STAGES = "stages"
_TUNE = "tune"
_NULLS = (("model", "weights"),)
"""Paths at which null has a meaning of its own; otherwise it is the default, if it is valid."""
_LONGEST_VALUE = 120
_NEAR_ELSEWHERE = 0.75
"""Minimum similarity for suggesting a key of another section."""


def problems_of(error: ValidationError) -> Iterator[Problem]:
    """Yield each problem found by pydantic with its path in the file; its line is None."""
    for detail in error.errors(include_url=False):
        path = _without_tags(detail["loc"])
        if detail["type"] == "value_error":
            yield _own_problem(path, detail["ctx"]["error"])
            continue
        kind, what, to_do = _words(detail, path)
        yield Problem(None, path, kind, what, to_do)


def _own_problem(path: Path, error: Exception) -> Problem:
    """Return the problem that a validator of this package raised."""
    assert isinstance(error, InvalidError), error
    parts = error.key.split(".") if error.key else []
    path = (*path, *(int(part) if part.isdecimal() else part for part in parts))
    return Problem(None, path, error.kind, error.what, error.to_do)


def _without_tags(location: Path) -> Path:
    """Return the path in the file, without the union tags that pydantic adds to its locations."""
    return tuple(
        part
        for at, part in enumerate(location)
        if not (at and part in _UNION_TAGS and _takes_both(location[:at]))
    )


def _takes_both(path: Path) -> bool:
    section = _section_at(path[:-1])
    field = section.model_fields.get(str(path[-1])) if section else None
    return field is not None and any(map(_chooses, (field.annotation, *field.metadata)))


def _chooses(annotation: Any) -> bool:
    return isinstance(annotation, Discriminator) or any(map(_chooses, get_args(annotation)))


def _words(detail: Any, path: Path) -> tuple[str, str, str]:
    """Return kind, problem and remedy of a problem that pydantic found."""
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return "config.unknown_key", "unknown key", _nearest_key(path)
    if kind == "missing":
        return "config.missing_key", "is required", ""
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        keys = _keys_of(path)
        if given is None:
            return "config.empty_section", "is empty", f"give it keys ({keys}) or remove the line"
        return (
            "config.not_a_section",
            f"must be a section of keys ({keys}), not {_shown(given)}",
            "",
        )
    what, to_do = _words_of_value(kind, detail, path, given)
    return "config.invalid_value", what, to_do


def _words_of_value(kind: str, detail: Any, path: Path, given: Any) -> tuple[str, str]:
    if kind == "literal_error":
        choices = [word.strip(" '") for word in _choices(detail["ctx"]["expected"])]
        near = did_you_mean(given, choices) if isinstance(given, str) else ""
        return f"must be one of {', '.join(choices)}, not {_shown(given)}", near
    if kind in ("too_long", "too_short", "tuple_type", "list_type"):
        length = _length_of(path)
        return f"must be a list{f' of {length}' if length else ''}, not {_shown(given)}", ""
    if kind == "less_than_equal" and isinstance(detail["ctx"]["le"], float):
        return f"must be less than or equal to {detail['ctx']['le']:g}, not {_shown(given)}", ""
    return _plain_words(kind, str(detail["msg"]), given)


def _plain_words(kind: str, message: str, given: Any) -> tuple[str, str]:
    text = message.replace("Input should be", "must be")
    for theirs, ours in (
        ("a valid integer", "a whole number"),
        ("a valid string", "text"),
        ("a valid number", "a number"),
        ("a valid boolean", "true or false"),
    ):
        text = text.replace(theirs, ours)
    hint = ""
    if kind == "bool_type" and isinstance(given, str):
        hint = "on, off, yes and no are text, not booleans"
    if kind == "string_type" and isinstance(given, int | float):
        hint = "put it in quotes"
    return f"{text[:1].lower()}{text[1:]}, not {_shown(given)}", hint


def _shown(value: Any) -> str:
    """Format a value roughly as in YAML, shortened if it is long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} …"


def _choices(expected: str) -> list[str]:
    return expected.replace(" or ", ",").split(",")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section type of a field's annotation, including that of a union or a list."""
    # In Python 3.10, isinstance(tuple[str, ...], type) is True.
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    if is_class and issubclass(annotation, BaseModel):
        section: type[BaseModel] = annotation
        return section
    inner = (_section_in(part) for part in get_args(annotation))
    return next((section for section in inner if section), None)


def _section_at(path: Path) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Config
    for part in path:
        if isinstance(part, int):  # index into a list of sections
            continue
        field = section.model_fields.get(str(part)) if section else None
        section = _section_in(field.annotation) if field else None
    return section


def has_default(path: Path) -> bool:
    """Return whether null given by an override resets the value at a path to its default."""
    section = _section_at(path[:-1])
    return section is not None and path[-1] in section.model_fields and path not in _NULLS


def _length_of(path: Path) -> int | None:
    section = _section_at(path[:-1])
    field = section.model_fields.get(str(path[-1])) if section else None
    parts = get_args(field.annotation) if field else ()
    return len(parts) if parts and parts[-1] is not Ellipsis else None


def _keys_of(path: Path) -> str:
    section = _section_at(path)
    return ", ".join(section.model_fields) if section else "…"


def dotted_keys(
    section: type[BaseModel] = Config, prefix: str = "", *, lists: bool = False
) -> list[str]:
    """Return the dotted keys of nested sections, and of lists of sections if ``lists`` is set."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = _section_in(field.annotation)
        if inner and (lists or get_origin(field.annotation) is not tuple):
            keys += dotted_keys(inner, f"{prefix}{name}.", lists=lists)
    return keys


def keys_named(name: str) -> list[str]:
    """Return the dotted keys that a name stands for: a whole key, a last part, or one near it.

    A section stands for its first key, as in ``model.name``.
    """
    by_word: dict[str, list[str]] = {"learning_rate": ["optimizer.lr"]}
    for key in dotted_keys():
        if not key.startswith((_TUNE, _STAGES)):  # their keys repeat the names of others
            section = _section_at(tuple(key.split(".")))
            value = key if section is None else f"{key}.{next(iter(section.model_fields))}"
            by_word.setdefault(key.rpartition(".")[2], []).append(value)
            by_word[key] = [value]
    near = nearest(name, by_word, limit=1, cutoff=_NEAR_ELSEWHERE)
    return by_word.get(name) or [key for word in near for key in by_word[word]]


def _nearest_key(path: Path) -> str:
    """Return a hint that names the most similar key, or else lists the section's keys.

    Tried in this order: the same name in another section, a similar one in the same section, a
    similar one in another section. For a key of a stage, only keys of that stage are suggested.
    """
    word = str(path[-1])
    section = _section_at(path[:-1])
    prefix = "".join(f"{part}." for part in path[:-1])
    here = [f"{prefix}{near}" for near in nearest(word, section.model_fields if section else ())]
    by_word: dict[str, list[str]] = {}
    for key in _keys_beside(path):
        by_word.setdefault(key.rpartition(".")[2], []).append(key)
    meant = by_word.get(word) or here[:1]
    if not meant:
        elsewhere = nearest(word, by_word, limit=1, cutoff=_NEAR_ELSEWHERE)
        meant = [key for near in elsewhere for key in by_word[near]]
    if meant:
        return f"Did you mean {' or '.join(repr(key) for key in meant)}?"
    return f"Known here: {_keys_of(path[:-1])}"


def _keys_beside(path: Path) -> list[str]:
    """Return the dotted keys of the stage that contains ``path``, or else of the base.

    Keys of ``tune`` are left out for paths outside ``tune``: they repeat the names of other keys.
    """
    if len(path) > 2 and path[0] == _STAGES:
        return dotted_keys(StageConfig, f"{_STAGES}.{path[1]}.")
    return [key for key in dotted_keys() if path[0] == _TUNE or not key.startswith(f"{_TUNE}.")]
