"""Terminal: width, colour and verbosity; messages and progress on stderr, results on stdout.

On a terminal, text is wrapped for its width, or for ``COLUMNS``, and coloured unless ``NO_COLOR``
is set. In a pipe, there is no colour and no progress; a result is wrapped for 80 columns without
shortening names, and a message is one line, also with ``COLUMNS``: the readline library sets it for
all programs that an interactive Python starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

from finetune.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

    from finetune.report.layout import Document, View

T = TypeVar("T")

_PIPE_WIDTH = 80
_NARROWEST = 40

QUIET, NORMAL, VERBOSE = -1, 0, 1
level = NORMAL
"""Verbosity of the command: ``--quiet`` shows only warnings, errors and the result."""


def set_level(value: int) -> None:
    """Set the verbosity of the command."""
    global level
    level = value


def view_of(stream: TextIO, *, pipe_width: int | None) -> View:
    """Return what text on a stream is laid out for.

    Args:
        pipe_width: Width of prose if the stream is no terminal; None does not wrap.
    """
    from finetune.report.layout import View

    verbose = level == VERBOSE
    if is_terminal(stream):
        return View(max(_console(stream).width, _NARROWEST), shortens=True, verbose=verbose)
    return View(pipe_width, verbose=verbose)


def is_terminal(stream: TextIO) -> bool:
    """Return whether text on a stream is laid out for a terminal."""
    return stream.isatty()


def printed(result: Document, stream: TextIO) -> str:
    """Return a document as text for stdout, with colours if it is a terminal."""
    from finetune.report.layout import lines

    return _styled(lines(result, view_of(stream, pipe_width=_PIPE_WIDTH)), stream)


def _styled(lines: Iterable[Text], stream: TextIO) -> str:
    console = _console(stream)
    with console.capture() as capture:
        for line in lines:
            console.print(line, soft_wrap=True)
    return capture.get().removesuffix("\n")


def _console(stream: TextIO) -> Console:
    from rich.console import Console
    from rich.theme import Theme

    from finetune.report.layout import STYLES

    # Results are encoded as UTF-8 by the caller, whatever the encoding of the stream.
    return Console(file=stream, theme=Theme(STYLES), highlight=False, markup=False, emoji=False)


def show_error(text: str) -> None:
    """Print an error message on stderr."""
    end_progress()
    _write("finetune: ", text, "error", styled_to=len("finetune:"))


class TerminalReporter:
    """Write messages and progress bars to stderr; stdout is for results only."""

    def say(self, text: str, *, good: bool = False) -> None:
        if level > QUIET:
            _write("", text, "good" if good else "")

    def detail(self, text: str) -> None:
        if level == VERBOSE:
            _write("", text, "dim")

    def warn(self, text: str) -> None:
        _write("warning: ", text, "warning", styled_to=len("warning:"))

    def status(self, text: str) -> None:
        show_status(text)

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        with _bar(description, total) as advance:
            for item in items:
                yield item
                advance()


def _write(before: str, text: str, style: str, *, styled_to: int | None = None) -> None:
    from finetune.report.layout import wrapped

    whole = before + printable(text, but="\n")
    if not is_terminal(sys.stderr):
        sys.stderr.write(f"{whole}\n")
        return
    from rich.text import Text

    content = Text(whole)
    content.stylize(style, 0, styled_to)
    lines = wrapped(content, view_of(sys.stderr, pipe_width=None))
    if _progress is not None:
        for line in lines:
            _progress.console.print(line, soft_wrap=True)
        return
    sys.stderr.write(f"{_styled(lines, sys.stderr)}\n")


_progress: Progress | None = None
_status: Any = None
"""Task of the line that says what is being done, while no bar is shown."""


def show_status(text: str) -> None:
    """Show what is being done, with the time that it has taken, until the next status or bar."""
    global _status
    progress = _shown_progress()
    if progress is None:
        return
    _end_status()
    _status = progress.add_task(text, total=None)


def end_progress() -> None:
    """Clear the status and the bars from the terminal."""
    global _progress, _status
    progress, _progress, _status = _progress, None, None
    if progress is not None:
        progress.stop()
    if isinstance(sys.stderr, _EndsProgress):
        sys.stderr = sys.stderr.stream


class _EndsProgress:
    """Standard error while progress is shown: what a library writes there ends the display."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        end_progress()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _end_status() -> None:
    global _status
    if _progress is not None and _status is not None:
        _progress.remove_task(_status)
    _status = None


@contextmanager
def _bar(description: str, total: int) -> Iterator[Any]:
    progress = _shown_progress()
    if progress is None:
        yield lambda: None
        return
    _end_status()
    task = progress.add_task(description, total=total)
    try:
        yield lambda: progress.advance(task)
    finally:
        if progress is _progress:
            progress.remove_task(task)


def _shown_progress() -> Progress | None:
    """Return the display of progress, which is begun; None if stderr is no terminal.

    Of several processes, the first one has it.
    """
    global _progress
    is_first = os.environ.get("RANK", "0") == "0"
    can_redraw = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if level == QUIET or not can_redraw or not is_first:
        return None
    if _progress is None:
        from finetune.cli.progress import begin

        _progress = begin(_console(sys.stderr))
        sys.stderr = cast("TextIO", _EndsProgress(sys.stderr))
    return _progress
