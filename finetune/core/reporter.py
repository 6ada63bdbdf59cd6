"""Interface for messages and progress of long operations; independent of a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from finetune.core.errors import OutputError
from finetune.core.files import append_line
from finetune.core.text import printable

T = TypeVar("T")


class Reporter(Protocol):
    """Receiver of messages and progress; `finetune.cli` passes one that draws bars on stderr."""

    def say(self, text: str, *, good: bool = False) -> None:
        """Report a fact on one line.

        Args:
            good: Whether it is good news, such as the best epoch so far.
        """

    def detail(self, text: str) -> None:
        """Report a fact that only ``--verbose`` shows."""

    def warn(self, text: str) -> None:
        """Report a warning on one line."""

    def status(self, text: str) -> None:
        """Say what is being done, until the next status or progress; only for a terminal."""

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        """Yield ``items``, showing how many of ``total`` are done."""


class SilentReporter:
    """`Reporter` that shows nothing, for callers from Python and for tests."""

    def say(self, text: str, *, good: bool = False) -> None: ...

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:  # noqa: ARG002
        return iter(items)


class ForwardingReporter:
    """`Reporter` that passes everything on; base of those that change some of it."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown

    def say(self, text: str, *, good: bool = False) -> None:
        self._shown.say(text, good=good)

    def detail(self, text: str) -> None:
        self._shown.detail(text)

    def warn(self, text: str) -> None:
        self._shown.warn(text)

    def status(self, text: str) -> None:
        self._shown.status(text)

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        return self._shown.track(items, description, total=total)


class LoggingReporter(ForwardingReporter):
    """`Reporter` that passes everything on, and keeps the messages of all levels in a log file.

    A log that cannot be written is given up: the work goes on without it.
    """

    def __init__(self, shown: Reporter) -> None:
        super().__init__(shown)
        self._kept: list[str] = []
        self._path: Path | None = None

    def write_to(self, path: Path) -> None:
        """Append the messages so far to a file, and those that follow as they come."""
        self._path = path
        self._append("\n".join(self._kept))

    def say(self, text: str, *, good: bool = False) -> None:
        self._keep(text)
        self._shown.say(text, good=good)

    def detail(self, text: str) -> None:
        self._keep(text)
        self._shown.detail(text)

    def warn(self, text: str) -> None:
        self._keep(f"warning: {text}")
        self._shown.warn(text)

    def _keep(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(text)}"
        self._kept.append(line)
        if self._path is not None:
            self._append(line)

    def _append(self, lines: str) -> None:
        if self._path is not None and lines:
            with suppress(OutputError):
                append_line(self._path, lines)
