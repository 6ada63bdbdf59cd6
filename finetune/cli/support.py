"""Helpers shared by all commands: showing a result, importing torch, ``--debug``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

from finetune.core.errors import ConfigError, FinetuneError, OutputError

debug_is_on = False

ends_at_once = False
"""Whether the process exits without interpreter teardown; set by ``main``, not for callers from
Python."""


class Finished(Exception):  # noqa: N818
    """End of the program with the exit code of processes that have shown their results."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_stdout: TextIO | None = None
"""Stream for results while a command runs and ``sys.stdout`` is redirected to stderr."""

_GARBAGE_AFTER = 5_000
"""Number of new objects before a garbage collection while torch is imported; Python's default is
700."""


def _set_debug(value: bool) -> None:
    global debug_is_on
    debug_is_on = debug_is_on or value


DebugOption = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, help="Show the traceback on errors."),
]


class _Command(TyperCommand):
    """Command that writes only its result to stdout.

    Output of libraries, such as torch.hub's message before a download, goes to stderr.
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
    """A `typer.Typer` whose commands write only their results to stdout."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a command, like `typer.Typer.command`."""
        return super().command(name, cls=_Command, **settings)


def emit(result: Any, render: Any, as_json: bool) -> None:
    """Print a result on stdout, as text or as JSON."""
    from finetune.report.json_text import to_json

    text = to_json(result) if as_json else render(result)
    write_bytes(f"{text}\n".encode())


def write_bytes(text: bytes) -> None:
    """Write encoded text to stdout, unbuffered.

    Raises:
        OutputError: stdout cannot be written.
    """
    try:
        typer.echo(text, nl=False, file=_stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"stdout cannot be written: {error.strerror}", kind="output.unwritable"
        ) from error


def no_effect(command: str, option: str, when: str, to_do: str) -> ConfigError:
    """Return the error for an option that has no effect with the others."""
    return ConfigError(
        f"has no effect {when}",
        kind="config.no_effect",
        source=command,
        key=option,
        to_do=to_do,
    )


class torch_imports:  # noqa: N801
    """Context manager for importing torch: faster, and a failed import raises a `FinetuneError`.

    Meanwhile garbage collection runs less often, which saves 0.4 of 2.5 seconds. The imported
    objects are then excluded from later collections, which take hundredths of a second instead of
    0.2. Disabling garbage collection would save another 0.1 seconds and leave 8 MiB of garbage.
    """

    def __enter__(self) -> None:
        self.before = gc.get_threshold()
        gc.set_threshold(_GARBAGE_AFTER, *self.before[1:])

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if ends_at_once:  # interpreter teardown would report frozen objects as leaked
            gc.freeze()
        gc.set_threshold(*self.before)
        if isinstance(error, ImportError | RuntimeError | OSError):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FinetuneError(
                f"torch and torchvision cannot be imported together ({first})",
                kind="machine.torch_import",
                to_do="Install a matching pair from the same index: "
                "pip install --force-reinstall torch torchvision",
            ) from error
