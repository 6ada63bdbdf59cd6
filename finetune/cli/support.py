"""Helpers shared by all commands: showing a result, importing torch, ``--debug``."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any, TextIO, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from finetune.cli import terminal
from finetune.core.errors import ConfigError, FinetuneError, OutputError

debug_is_on = False

_WHOLE_SENTENCE = 1_000
"""Limit of the summary of a command in a list, which is wrapped and not cut."""

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
                terminal.show_status("starting")
                return super().invoke(ctx)
        finally:
            terminal.end_progress()
            _stdout = before


def _set_quiet(value: bool) -> None:
    if value:
        terminal.set_level(terminal.QUIET)


def _set_verbose(value: bool) -> None:
    if value:
        terminal.set_level(terminal.VERBOSE)


_VERBOSITY = {
    "quiet": Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=_set_quiet, help="Show warnings, errors and the result only."
        ),
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_set_verbose,
            help="Show all details: resolved autos, timings, hashes.",
        ),
    ],
}
"""Options of every command; `terminal.level` has their value."""


def _with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also takes the options of `_VERBOSITY`."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        function(**{name: value for name, value in given.items() if name not in _VERBOSITY})

    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters.values()
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(parameter.replace(annotation=hints[parameter.name]) for parameter in own),
            *(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option
                )
                for name, option in _VERBOSITY.items()
            ),
        ]
    )
    command.__annotations__ = {**hints, **_VERBOSITY}
    return command


class _Group(TyperGroup):
    """Group of commands, listed under the titles that they were registered with."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        titles: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            title = getattr(command, "rich_help_panel", None)
            summary = command.get_short_help_str(_WHOLE_SENTENCE)
            titles.setdefault(title if isinstance(title, str) else "Commands", []).append(
                (name, summary)
            )
        widest = max(len(name) for rows in titles.values() for name, _ in rows)
        for title, rows in titles.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{widest}}", summary) for name, summary in rows])


class App(typer.Typer):
    """A `typer.Typer` whose commands write only their results to stdout."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a command, like `typer.Typer.command`."""
        register = super().command(name, cls=_Command, **settings)
        return lambda function: register(_with_verbosity(function))


def emit(result: Any, render: Any, as_json: bool) -> None:
    """Print a result on stdout, as text or as JSON.

    Args:
        render: Function that returns the `Document` of the result.
    """
    from finetune.report.json_text import to_json

    if as_json:
        write_bytes(f"{to_json(result)}\n".encode())
    else:
        show(render(result))


def show(document: Any) -> None:
    """Print a `finetune.report.layout.Document` on stdout."""
    terminal.end_progress()
    write_bytes(f"{terminal.printed(document, _stdout or sys.stdout)}\n".encode())


def write_bytes(text: bytes) -> None:
    """Write encoded text to stdout, unbuffered.

    Raises:
        OutputError: stdout cannot be written.
    """
    terminal.end_progress()
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
        terminal.show_status("importing torch")
        self.before = gc.get_threshold()
        gc.set_threshold(_GARBAGE_AFTER, *self.before[1:])

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if ends_at_once:  # interpreter teardown would report frozen objects as leaked
            gc.freeze()
        gc.set_threshold(*self.before)
        terminal.show_status("starting")
        if isinstance(error, ImportError | RuntimeError | OSError):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FinetuneError(
                f"torch and torchvision cannot be imported together ({first})",
                kind="machine.torch_import",
                to_do="Install a matching pair from the same index: "
                "pip install --force-reinstall torch torchvision",
            ) from error
