"""Validation of checkpoint metadata, which may be untrusted; imports no torch."""

from __future__ import annotations

from typing import Any

from finetune.config.model_registry import BUILDERS

_LARGEST_SIDE = 4096
_SWITCHES = ("transform_input", "aux_logits", "init_weights")


def known_builder(name: str) -> str:
    """Validate the name of a torchvision classification builder.

    Some of torchvision's other builders would unpickle files that they download.

    Raises:
        ValueError: The name is not that of a classification builder.
    """
    if name not in BUILDERS:
        raise ValueError(f"{name!r} is not a torchvision classification builder")
    return name


def known_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Validate the build flags: only those that training passes to a builder.

    Raises:
        ValueError: A flag is unknown, or its value is invalid, such as an image size out of range.
    """
    for key, value in flags.items():
        if key in _SWITCHES:
            known = isinstance(value, bool)
        elif key == "image_size":
            known = _is_side(value)
        else:
            known = key == "input_size" and isinstance(value, list) and len(value) == 2
            known = known and all(map(_is_side, value))
        if not known:
            raise ValueError(f"{key!r}: {value!r} is not a build flag of a network")
    return flags


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIDE


def plain_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Validate class names: not empty, printable and unique.

    Raises:
        ValueError: There are no names, a name is blank or not printable, or two are equal.
    """
    odd = next((name for name in names if not name.strip() or not name.isprintable()), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is not a class name")
    if not names or len(set(names)) < len(names):
        raise ValueError("class names must be unique")
    return names
