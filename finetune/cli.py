"""The command line: parse, call one command, show its result, choose the exit code.

Commands are imported when they run, so that ``--help`` and a wrong config answer without torch.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from finetune import cli_data, cli_results, cli_support, cli_tune, stopping
from finetune.cli_options import (
    CacheFolderOption,
    ConfigOption,
    JsonOption,
    SetOption,
)
from finetune.cli_support import App, DebugOption, emit, torch_imports
from finetune.errors import (
    ConfigError,
    FinetuneError,
    Interrupted,
    OutputError,
    address_problem,
    printable,
)
from finetune.terminal import TerminalProgress

if TYPE_CHECKING:
    from finetune.config import Config

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What a disk says that is full, broken or closed to writing, wherever that happens."""

app = App(
    name="finetune",
    help="Fine-tune torchvision image classifiers, and pay only for what trains.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache = App(
    help="List or clear the features that earlier runs keep on disk.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fine-tune torchvision image classifiers, and pay only for what trains."""
    if version:
        from finetune import __version__

        typer.echo(f"finetune {__version__}")
        raise typer.Exit


@app.command()
def train(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="With --resume: a run's folder, for its own config."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="FILE", help="The config file, in YAML.")
    ] = None,
    overrides: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that output_dir holds.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in output_dir, or with RUN."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything up to the first step, then stop.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--report", help="Write report.html, one page to look at, as well.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Fine-tune the unfrozen part of a pretrained backbone."""
    if dry_run and page:
        raise ConfigError("train: --report has no effect with --dry-run; leave one out")
    if resume and (overwrite or dry_run):
        other = "--overwrite" if overwrite else "--dry-run"
        raise ConfigError(f"train: {other} has no effect with --resume; leave one out")
    if run is not None and not resume:
        raise ConfigError(
            f"train: {run!r}: a config goes with --config, and a run's folder with --resume"
        )
    loaded = _config_to_train(run, config, overrides or (), resume=resume)
    with torch_imports():
        from finetune.commands import dry_run as dry_command
        from finetune.commands import train as command
    from finetune.report.text import render_dry_run, render_train

    progress = TerminalProgress()
    if dry_run:
        checked = dry_command.dry_run(loaded, overwrite=overwrite, progress=progress)
        emit(checked, render_dry_run, as_json)
    else:
        summary = command.train(loaded, overwrite=overwrite, resume=resume, progress=progress)
        if page and summary.val is None:
            progress.warn("--report: nothing was held out, so that there is nothing to show")
        elif page:
            cli_results.write_page(summary.run_dir, progress)
            # What has just been done is not what comes next.
            coming = (line for line in summary.next if not line.startswith("finetune report "))
            summary = replace(summary, next=tuple(coming))
        emit(summary, render_train, as_json)


def _config_to_train(
    run: str | None, config: str | None, overrides: Sequence[str], *, resume: bool
) -> Config:
    """The config file, or the one that a run was saved with; in that run's folder."""
    from finetune import run_folder
    from finetune.config_file import load_config

    if run is None:
        if config is None:
            hint = "or, to go on with a run, its folder" if resume else "`finetune init` writes one"
            raise ConfigError(f"train: Missing option '--config'; {hint}")
        return load_config(config, overrides)
    if any(override.partition("=")[0].strip() == "output_dir" for override in overrides):
        raise ConfigError(
            f"--set output_dir: has no effect with --resume {run}: a run goes on in its own "
            "folder; leave one out"
        )
    loaded = load_config(config or run_folder.config_of(run), overrides)
    return loaded.model_copy(update={"output_dir": run})


@app.command(name="freeze-report")
def freeze_report(
    config: ConfigOption,
    overrides: SetOption = None,
    num_classes: Annotated[
        int | None,
        typer.Option("--num-classes", min=2, help="Needed only where the data is absent."),
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", min=1, help="Of a run in stages, this one alone.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="List every parameter with its pattern.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show what is frozen, by which pattern, and what that saves. Needs no weights and no data."""
    from finetune.config_file import load_config

    loaded = load_config(config, overrides or ())
    with torch_imports():
        from finetune.commands import freeze_report as command
    from finetune.report.text import render_freeze_report

    report = command.freeze_report(
        loaded, num_classes=num_classes, stage=stage, progress=TerminalProgress()
    )
    emit(report, lambda result: render_freeze_report(result, verbose=verbose), as_json)


cli_results.register(app)
cli_tune.register(app)
app.command(name="check-data")(cli_data.check_data)
app.command()(cli_data.init)
app.command(name="show-batch")(cli_data.show_batch)


@app.command()
def models(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Only builders whose name holds it.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the backbones: parameters, head, input size, weights and their published accuracy."""
    with torch_imports():
        from finetune.commands import models as command
    from finetune.report.text import render_models

    emit(command.list_models(word), render_models, as_json)


@cache.command(name="list")
def cache_list(
    folder: CacheFolderOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the stored features, the most recently used first."""
    emit(_cache_command().list_cache(folder), _cache_text(), as_json)


@cache.command(name="clear")
def cache_clear(
    folder: CacheFolderOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Remove all stored features; they are computed again when they are needed."""
    emit(_cache_command().clear_cache(folder), _cache_text(), as_json)


def _cache_command() -> Any:
    with torch_imports():
        from finetune.commands import cache as command
    return command


def _cache_text() -> Any:
    from finetune.report.text import render_cache

    return render_cache


def main() -> NoReturn:
    """Run the command line; the one place where an error becomes a message and an exit code."""
    _open_streams()
    stopping.listen()
    cli_support.ends_at_once = True
    _leave(_run())


def _open_streams() -> None:
    """A standard stream that the caller closed leads nowhere.

    Left closed, the next file that is opened would take its number, and whatever a library prints
    would go into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each takes the lowest number that is free: its own.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _leave(code: int) -> NoReturn:
    """End the program without taking it apart: with torch in it that takes Python 0.7 seconds.

    What is to run at the end runs, and what was said is written; the system takes the rest back.
    """
    stopping.ignore()
    atexit._run_exitfuncs()
    with suppress(OSError):  # whoever read it has left
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _refuse_addresses(arguments: Sequence[str]) -> None:
    """Refuse addresses in place of paths, in whichever option.

    Photos to label are left to `finetune predict`: one that cannot be read is no reason to stop.
    """
    for at, argument in enumerate(arguments):
        is_photo = at > 1 and arguments[0] == "predict" and not arguments[at - 1].startswith("-")
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        problem = None if is_photo else address_problem(value)
        if problem:
            raise ConfigError(problem)


def _run() -> int:
    try:
        _refuse_addresses(sys.argv[1:])
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (FinetuneError, Interrupted) as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(_usage_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except SystemExit as leaving:  # how typer ends where the reader of our output left
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        # As `head` leaves: nothing is wrong, and nothing else may be written there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK:
            return _unexpected(error)
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}cannot be written: {error.strerror}", OutputError.exit_code)
    except Exception as error:
        return _unexpected(error)
    if code == 130:  # typer turns the KeyboardInterrupt into a code by itself
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> int:
    return _fail(
        f"unexpected {type(error).__name__}: {str(error).rstrip('.')}. This is a mistake in "
        "finetune; add --debug to see where.",
        1,
    )


def _usage_message(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = "finetune"
    if context is not None and context.parent is not None:
        command = f"finetune {context.info_name}"
    text = error.format_message().replace("Value error, ", "").replace("Input should", "it should")
    text = text.replace("\n\t", " ")  # of choices, one a line
    return f"{text.rstrip('.')}. `{command} --help` lists what there is."


def _fail(message: str, code: int) -> int:
    if cli_support.debug_is_on:
        traceback.print_exc()
    text = printable(message, but="\n")
    sys.stderr.write(f"finetune: {text}\n")
    return code
