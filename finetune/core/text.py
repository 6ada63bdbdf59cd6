"""Wording helpers for messages and tables: counts, plurals, lists and nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any


def nearest(word: str, choices: Iterable[str], *, limit: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the choices most similar to ``word``, best first; case is ignored."""
    by_lower: dict[str, str] = {}
    for choice in choices:
        by_lower.setdefault(choice.lower(), choice)
    close = difflib.get_close_matches(word.lower(), by_lower, n=limit, cutoff=cutoff)
    return [by_lower[match] for match in close]


def did_you_mean(word: str, choices: Iterable[str], *, limit: int = 1) -> str:
    """Return `` Did you mean 'x'?``, or an empty string if no choice is similar."""
    close = nearest(word, choices, limit=limit)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(choice) for choice in close)}?"


def first_few(texts: Iterable[str], *, most: int = 3, between: str = ", ") -> str:
    """Join the first ``most`` texts, and append the number of the others."""
    every = list(texts)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return between.join(every[:most]) + more


def printable(text: str, *, but: str = "") -> str:
    """Escape unprintable characters, so that names cannot send control sequences to a terminal.

    Args:
        text: Text to escape.
        but: Characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else ascii(c)[1:-1] for c in text)


def on_one_line(text: str) -> str:
    """Return a name unchanged if it is printable, else quoted with escapes."""
    return text if text.isprintable() else ascii(text)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each key of nested sections; empty ones are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def valid_utf8(text: str) -> str:
    """Return text with the bytes of file names that are not UTF-8 escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


_MOST_PATTERNS = 6


def listed_patterns(patterns: Sequence[str]) -> str:
    """Join the first few patterns; "none" if there are none."""
    return first_few(patterns, most=_MOST_PATTERNS, between=" ") or "none"


def count(number: int) -> str:
    """Format a large number with three digits, such as 2.23 M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return (
                f"{number / size:.3g} {unit}"
                if number < 999.5 * size
                else f"{number // size} {unit}"
            )
    return str(number)


def mib(num_bytes: int) -> str:
    """Format bytes as MiB, or as KiB below 1 MiB."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def plural(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 tensor``, ``2 tensors``, ``2 classes``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def today() -> str:
    """Return the date as 28 November 2026."""
    now = datetime.now().astimezone()
    return f"{now.day} {now:%B %Y}"
