"""Interface for messages and progress of long operations; independent of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """Receiver of messages and progress; `finetune.cli` passes one that draws bars on stderr."""

    def say(self, text: str) -> None:
        """Report a fact on one line."""

    def warn(self, text: str) -> None:
        """Report a warning on one line."""

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        """Yield ``items``, showing how many of ``total`` are done."""


class SilentReporter:
    """`Reporter` that shows nothing, for callers from Python and for tests."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:  # noqa: ARG002
        return iter(items)
