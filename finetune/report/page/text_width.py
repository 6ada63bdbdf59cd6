"""Shortening and width of labels in drawings."""

from __future__ import annotations

import unicodedata

LONGEST_LABEL = 22


def shortened(name: str) -> str:
    """Return a name shortened to `LONGEST_LABEL` characters."""
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def text_width(text: str, *, size: float = 11) -> float:
    """Upper bound of the width of a line of text, in pixels, at font size ``size``.

    The page uses the reader's font; widths are those of a wide font, DejaVu Sans.
    """
    return size * sum(map(_ems, text))


def _ems(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0
    if unicodedata.category(letter) == "So":  # such as an emoji
        return 1.4
    if letter in "mwMW@%&…" or unicodedata.east_asian_width(letter) in "WF":
        return 1
    return 0.64 if letter.isascii() and not letter.isupper() else 0.8
