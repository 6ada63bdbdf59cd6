"""What the commands of the command line share: showing a result, importing torch, ``--debug``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

from finetune.errors import FinetuneError, OutputError

debug_is_on = False

ends_at_once = False
"""Whether nothing is taken apart when the process ends: it is the program, not Python's caller."""

_stdout: TextIO | None = None
"""Where results go while a command runs, and nothing else."""

_GARBAGE_AFTER = 5_000
"""New objects, where Python's own 700 are meant for programs that import less."""


def _set_debug(value: bool) -> None:
    global debug_is_on
    debug_is_on = debug_is_on or value


DebugOption = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error."),
]


class _Command(TyperCommand):
    """A command whose results alone go to stdout.

    Libraries print there as well, such as torch.hub before a download: that goes to stderr.
    """

    def invoke(self, ctx: Any) -> Any:
        global _stdout
        before, _stdout = _stdout, sys.stdout
        try:
            with redirect_stdout(sys.stderr):
                return super().invoke(ctx)
        finally:
            _stdout = before


class App(typer.Typer):
    """A `typer.Typer` whose commands leave stdout to their results."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """As `typer.Typer.command`."""
        return super().command(name, cls=_Command, **settings)


def emit(result: Any, render: Any, as_json: bool) -> None:
    """A result on stdout, in words or as JSON."""
    from finetune.report.json_text import to_json

    text = to_json(result) if as_json else render(result)
    write_bytes(f"{text}\n".encode())


def write_bytes(text: bytes) -> None:
    """Encoded text on stdout, at once.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        typer.echo(text, nl=False, file=_stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}") from error


class torch_imports:  # noqa: N801
    """Turns a torch that cannot be imported into one line with the fix.

    Python looks for garbage less often meanwhile, 0.4 seconds of two and a half, and never again
    among what was imported: a later search takes hundredths of a second in place of 0.2. To look
    for none at all would save 0.1 seconds more and leave 8 MiB.
    """

    def __enter__(self) -> None:
        self.before = gc.get_threshold()
        gc.set_threshold(_GARBAGE_AFTER, *self.before[1:])

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if ends_at_once:  # taken apart, what is frozen would be reported as lost
            gc.freeze()
        gc.set_threshold(*self.before)
        if isinstance(error, ImportError | RuntimeError | OSError):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FinetuneError(
                f"torch and torchvision cannot be imported together ({first}). They must come "
                "from the same index, as a matching pair: pip install --force-reinstall torch "
                "torchvision"
            ) from error
