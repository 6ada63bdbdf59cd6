"""Reporter that writes messages and progress bars to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_BAR_AFTER_S = 2.0


class TerminalReporter:
    """Write messages and progress bars to stderr; stdout is for results only."""

    def say(self, text: str) -> None:
        self._write(text)

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        from tqdm import tqdm

        # disable=None: no bar if stderr is not a terminal.
        with tqdm(
            items, desc=description, total=total, leave=False, disable=None, delay=_BAR_AFTER_S
        ) as bar:
            yield from bar

    def _write(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
