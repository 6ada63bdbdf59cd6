"""How a long piece of work tells the person who waits for it; knows no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What commands call while they work; ``cli.py`` passes one that draws bars on stderr."""

    def say(self, text: str) -> None:
        """State a fact, as one line."""

    def warn(self, text: str) -> None:
        """State something that deserves attention, as one line."""

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        """Pass ``items`` on, showing how many of ``total`` are done."""


class Silent:
    """A `Progress` that shows nothing, for callers from Python and for tests."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:  # noqa: ARG002
        return iter(items)
