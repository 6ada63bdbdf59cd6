"""What a checkpoint may say of itself: somebody else may have written it; imports no torch."""

from __future__ import annotations

from typing import Any

from finetune.backbones import BUILDERS

_LARGEST_SIDE = 4096
_SWITCHES = ("transform_input", "aux_logits", "init_weights")


def known_builder(name: str) -> str:
    """The name of a classification builder: some of torchvision's others would unpickle what
    they download.

    Raises:
        ValueError: it is another's.
    """
    if name not in BUILDERS:
        raise ValueError(f"{name!r} is no torchvision classification builder")
    return name


def known_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that training gives to a builder.

    Raises:
        ValueError: another one, or a size that no photo is given in.
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
            raise ValueError(f"{key!r}: {value!r} is no flag that training gives to a network")
    return flags


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIDE


def plain_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names that can be told apart and shown.

    Raises:
        ValueError: there is none, one is empty or cannot be printed, or two are the same.
    """
    odd = next((name for name in names if not name.strip() or not name.isprintable()), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is no name of a class")
    if not names or len(set(names)) < len(names):
        raise ValueError("every class needs a name of its own")
    return names
