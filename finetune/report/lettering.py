"""Names as a drawing has them: short enough, and how much room they take."""

from __future__ import annotations

import unicodedata

LONGEST_LABEL = 22


def shortened(name: str) -> str:
    """A name as a label; its end is left out where it is long."""
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def text_width(text: str, *, size: float = 11) -> float:
    """Pixels that a line of text takes at most, of ``size`` in the page's style.

    The font is the reader's own: the widths are those of a wide one, DejaVu Sans.
    """
    return size * sum(map(_ems, text))


def _ems(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0
    if unicodedata.category(letter) == "So":  # an emoji, say
        return 1.4
    if letter in "mwMW@%&…" or unicodedata.east_asian_width(letter) in "WF":
        return 1
    return 0.64 if letter.isascii() and not letter.isupper() else 0.8
