"""Command-line application: parse, call one command, show its result, set the exit code.

Commands are imported when they run, so ``--help`` and config errors do not need torch.
"""

from __future__ import annotations

import atexit
import errno
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from finetune.cli import data, evaluation, support, terminal, tuning
from finetune.cli.options import (
    CacheFolderOption,
    ConfigArgument,
    ConfigOption,
    JsonOption,
    SetOption,
    is_config,
    load,
    one_config,
)
from finetune.cli.support import App, DebugOption, emit, no_effect, torch_imports, write_bytes
from finetune.cli.terminal import TerminalReporter
from finetune.core import signals
from finetune.core.errors import (
    ConfigError,
    FinetuneError,
    Interrupted,
    OutputError,
    address_problem,
)
from finetune.core.reporter import Reporter, SilentReporter
from finetune.distributed.ranks import Ranks

if TYPE_CHECKING:
    from finetune.config.schema import Config


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Error numbers of a disk that is full, faulty or read-only."""

_HEAD_START_S = 1.0
"""Time that the process which prints an error has, before the launcher sees another one end and
terminates all."""

app = App(
    name="finetune",
    help="Fine-tune torchvision image classifiers; cache the outputs of frozen layers.",
    no_args_is_help=True,
    epilog="`finetune COMMAND --help` shows the options of a command, with an example.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache = App()


@cache.callback(invoke_without_command=True)
def cache_root(ctx: typer.Context) -> None:
    """List or clear the cached features of earlier runs."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fine-tune torchvision image classifiers; cache the outputs of frozen layers."""
    if version:
        from finetune.core.version import __version__

        typer.echo(f"finetune {__version__}")
        raise typer.Exit


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG",
            help="YAML config file, or run directory: its config, or with --resume the run.",
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run in output_dir.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the given run, or the one in output_dir."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Train the best model that this time allows (90s, 15m, 2h): recipe auto.",
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc",
            metavar="N",
            min=2,
            help="Train in N processes on this machine, for example one for each GPU.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run all checks and stop before the first step.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--report", help="Also write an HTML report (report.html).")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Fine-tune the unfrozen part of a pretrained backbone."""
    if dry_run and page:
        raise no_effect("train", "--report", "with --dry-run", "remove one of them")
    if resume and (overwrite or dry_run):
        other = "--overwrite" if overwrite else "--dry-run"
        raise no_effect("train", other, "with --resume", "remove one of them")
    if resume and budget is not None:
        raise no_effect("train", "--budget", "with --resume", "remove one of them")
    ranks = Ranks.of_environment()
    if nproc is not None and (dry_run or ranks.are_several):
        when = "with --dry-run" if dry_run else "in processes that a launcher has started"
        raise no_effect("train", "--nproc", when, "remove one of them")
    loaded = _config_to_train(source, config, overrides or (), resume=resume)
    reporter: Reporter = TerminalReporter() if ranks.is_first else SilentReporter()
    if budget is not None:
        loaded = _with_budget(loaded, budget, reporter)
    is_ladder = loaded.recipe == "auto"
    if resume and is_ladder:
        raise ConfigError(
            "recipe auto cannot be resumed",
            kind="config.no_effect",
            source="train",
            key="--resume",
            to_do="start over with --overwrite, which finds the cached features again, or resume "
            "one of its runs with --resume RUN",
        )
    if (nproc is not None or ranks.are_several) and (is_ladder or dry_run):
        what = "recipe auto" if is_ladder else "--dry-run"
        raise ConfigError(
            f"{what} runs in one process",
            kind="config.one_process",
            source="train",
            to_do="choose another recipe, such as full, or use a single process"
            if is_ladder
            else "use a single process",
        )
    if nproc is not None:
        with torch_imports():
            from finetune.commands.launch import launch
        terminal.end_progress()  # the processes show their own
        raise support.Finished(launch(_without_nproc(sys.argv[2:]), nproc, reporter))
    with torch_imports():
        from finetune.checkpoints.run_dir import report_command
        from finetune.commands import dry_run as dry_command
        from finetune.commands import ladder as ladder_command
        from finetune.commands import train as command
        from finetune.distributed.group import joined
    from finetune.report.dry_run import render_dry_run
    from finetune.report.ladder import render_ladder
    from finetune.report.train import render_train

    if is_ladder and not dry_run:
        climbed = ladder_command.train_within(loaded, overwrite=overwrite, reporter=reporter)
        if page:
            evaluation.write_page(climbed.run_dir, reporter)
            done = report_command(climbed.run_dir)
            left = tuple(line for line in climbed.next if line != done)
            climbed = replace(climbed, next=left, train=replace(climbed.train, next=left))
        emit(climbed, render_ladder, as_json)
    elif dry_run:
        if is_ladder:
            reporter.say("recipe auto: only its first run, of the head alone, is checked and timed")
        checked = dry_command.dry_run(loaded, overwrite=overwrite, reporter=reporter)
        emit(checked, render_dry_run, as_json)
    else:
        with joined() as group:
            summary = command.train_in_group(
                loaded, group, overwrite=overwrite, resume=resume, reporter=reporter
            )
        if summary is None:  # the first process of several shows it
            return
        if page and summary.val is None:
            reporter.warn("--report: there are no validation images, so no report was written")
        elif page:
            evaluation.write_page(summary.run_dir, reporter)
            done = report_command(summary.run_dir)
            summary = replace(summary, next=tuple(line for line in summary.next if line != done))
        emit(summary, render_train, as_json)


def _without_nproc(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``train`` for each of the processes."""
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--nproc":
            next(left, None)
        elif not argument.startswith("--nproc="):
            rest.append(argument)
    return rest


def _with_budget(config: Config, budget: str, reporter: Reporter) -> Config:
    """Return the config with ``recipe: auto`` and this budget."""
    from finetune.config.base import InvalidError, duration
    from finetune.recipes.ladder import without_choices

    try:
        duration(budget)
    except InvalidError as error:
        raise ConfigError(
            error.what, kind="config.invalid_value", source="train", key="--budget"
        ) from error
    loaded, replaced = without_choices(config, budget)
    if replaced:
        reporter.say(
            f"--budget chooses what to train: {', '.join(replaced)} of the config not used"
        )
    return loaded


def _config_to_train(
    source: str | None, config: str | None, overrides: Sequence[str], *, resume: bool
) -> Config:
    """Load the given config; to resume a run directory, by default the one saved in it."""
    from finetune.checkpoints import run_dir

    if resume and source is None and config is None:
        raise ConfigError(
            "the argument is missing",
            kind="config.missing_argument",
            source="train",
            key="--resume",
            to_do="give the folder of the run to resume",
        )
    if not resume or source is None or is_config(source):
        return load(one_config("train", source, config), overrides)
    if any(override.partition("=")[0].strip() == "output_dir" for override in overrides):
        raise no_effect(
            "train",
            "--set output_dir",
            f"with --resume {source}, which resumes in its own folder",
            "remove one of them",
        )
    loaded = load(config or str(run_dir.config_of(source)), overrides)
    return loaded.with_values({"output_dir": source})


def freeze_report(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    num_classes: Annotated[
        int | None,
        typer.Option("--num-classes", min=2, help="Number of classes, if the data is missing."),
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", min=1, help="Show one stage of a multi-stage run.")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Show the accuracy of a linear probe after each block."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="PNG file of --probe (default: NAME-depth.png)."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show which parameters are frozen and what that saves.

    Reads neither weights nor images, except with --probe. Without the data, pass --num-classes.
    With --verbose, lists every parameter and its pattern.
    """
    if probe:
        alone = {"--num-classes": num_classes, "--stage": stage}
        for option in (name for name, value in alone.items() if value):
            raise no_effect("freeze-report", option, "with --probe", "remove one of them")
    elif output is not None:
        raise no_effect("freeze-report", "--output", "without --probe", "remove it")
    given = one_config("freeze-report", source, config)
    loaded = load(given, overrides)
    if probe:
        with torch_imports():
            from finetune.commands import depth_report as depth_command
        from finetune.report.depth_probes import render_depths

        reporter = TerminalReporter()
        picture = Path(output) if output else tuning.default_plot(given, "depth", reporter)
        depths = depth_command.depth_report(loaded, picture=picture, reporter=reporter)
        emit(depths, render_depths, as_json)
        return
    with torch_imports():
        from finetune.commands import freeze_report as command
    from finetune.report.freeze_report import render_freeze_report

    report = command.freeze_report(
        loaded, num_classes=num_classes, stage=stage, reporter=TerminalReporter()
    )
    emit(report, render_freeze_report, as_json)


def models(
    word: Annotated[
        str | None, typer.Argument(metavar="WORD", help="List only models containing WORD.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the available backbones and their weights.

    Shows parameter count, head, input size, and each weights entry with its published accuracy.
    """
    with torch_imports():
        from finetune.commands import models as command
    from finetune.report.catalog import render_models

    emit(command.list_models(word), render_models, as_json)


def schema(
    as_json: JsonOption = False,  # noqa: ARG001  # the schema is JSON in any case
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Print the JSON Schema of the config, for editors.

    It describes every key, with its default and an example. The configs that init writes name a
    copy beside them, which editors with a YAML language server use to complete and check keys.
    """
    from finetune.config.json_schema import schema_text

    write_bytes(schema_text().encode())


@cache.command(name="list", epilog="Example: finetune cache list")
def cache_list(
    folder: CacheFolderOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """List the cached features, most recently used first."""
    emit(_cache_command().list_cache(folder), _cache_text(), as_json)


@cache.command(name="clear", epilog="Example: finetune cache clear --unused 30")
def cache_clear(
    folder: CacheFolderOption = None,
    unused: Annotated[
        float | None,
        typer.Option(
            "--unused",
            metavar="DAYS",
            min=0,
            help="Remove only features that have not been used for this many days.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Remove cached features, all of them or those that were not used lately.

    They are computed again when a run needs them.
    """
    emit(_cache_command().clear_cache(folder, unused_days=unused), _cache_text(), as_json)


def _cache_command() -> Any:
    with torch_imports():
        from finetune.commands import cache as command
    return command


def _cache_text() -> Any:
    from finetune.report.catalog import render_cache

    return render_cache


_COMMANDS: dict[str, Sequence[tuple[str, Callable[..., None], str]]] = {
    "Your photos": (
        ("init", data.init, "finetune init photos/pets --output pets.yaml"),
        ("check-data", data.check_data, "finetune check-data photos/pets"),
        ("suspects", data.suspects, "finetune suspects runs/pets"),
        ("show-batch", data.show_batch, "finetune show-batch pets.yaml"),
        ("sample", data.sample, "finetune sample photos/shapes"),
        ("learning-curve", tuning.learning_curve, "finetune learning-curve pets.yaml"),
        ("next", evaluation.next_photos, "finetune next runs/pets photos/unlabelled"),
    ),
    "Training": (
        ("train", train, "finetune train pets.yaml --budget 15m"),
        ("tune", tuning.tune, "finetune tune pets.yaml --backbones auto"),
        ("lr-find", tuning.lr_find, "finetune lr-find pets.yaml"),
        ("freeze-report", freeze_report, "finetune freeze-report pets.yaml"),
    ),
    "Results": (
        ("eval", evaluation.evaluate, "finetune eval runs/pets --split test"),
        ("report", evaluation.report, "finetune report runs/pets"),
        ("compare", evaluation.compare, "finetune compare runs/pets runs/pets-2"),
    ),
    "Using the model": (
        ("predict", evaluation.predict, "finetune predict runs/pets photos/new"),
        ("embed", evaluation.embed, "finetune embed runs/pets photos/new --output new.npz"),
        ("export", evaluation.export, "finetune export runs/pets --format onnx"),
    ),
    "Backbones, cache and config": (
        ("models", models, "finetune models mobilenet"),
        ("schema", schema, "finetune schema > finetune.schema.json"),
    ),
}
"""Commands with an example each, in the order in which a user comes to need them."""

for _title, _commands in _COMMANDS.items():
    for _name, _function, _example in _commands:
        app.command(name=_name, rich_help_panel=_title, epilog=f"Example: {_example}")(_function)
app.add_typer(cache, name="cache", rich_help_panel="Backbones, cache and config")


def main() -> NoReturn:
    """Run the command line and exit; only here do errors become messages and exit codes."""
    _open_streams()
    if "WORLD_SIZE" in os.environ:  # torch would print C++ stacks when another process ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signals.listen()
    support.ends_at_once = True
    _leave(_run())


def _open_streams() -> None:
    """Redirect standard streams that the caller closed to the null device.

    Otherwise the next opened file would get the stream's descriptor, and anything a library prints
    would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # os.open returns the lowest free descriptor: in this order, the stream's own.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _leave(code: int) -> NoReturn:
    """Exit without interpreter teardown, which takes 0.7 seconds once torch is imported.

    Exit handlers run and the standard streams are flushed; the system frees the rest.
    """
    signals.ignore()
    atexit._run_exitfuncs()
    with suppress(OSError):  # the reader closed the pipe
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _refuse_addresses(arguments: Sequence[str]) -> None:
    """Raise a `ConfigError` if any argument or option value is a URL instead of a path.

    The photos passed to `finetune predict` are exempt: it reports an unreadable photo and
    continues.
    """
    for at, argument in enumerate(arguments):
        is_photo = at > 1 and arguments[0] == "predict" and not arguments[at - 1].startswith("-")
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        problem = None if is_photo else address_problem(value)
        if problem:
            raise ConfigError.of([problem], kind=problem.kind)


def _refuse_several_processes(arguments: Sequence[str]) -> None:
    """Raise a `ConfigError` if a launcher has started several processes of a command but ``train``.

    Without it, each would do the whole work and write the same files.
    """
    if Ranks.of_environment().are_several and arguments[:1] != ["train"]:
        raise ConfigError(
            "runs in one process, but a launcher has started several",
            kind="config.one_process",
            source=" ".join(["finetune", *arguments[:1]]),
            to_do="run it without torchrun; only `finetune train` shares its work",
        )


def _run() -> int:
    terminal.set_level(terminal.NORMAL)
    try:
        _refuse_addresses(sys.argv[1:])
        _refuse_several_processes(sys.argv[1:])
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except support.Finished as finished:
        return finished.code
    except (FinetuneError, Interrupted) as error:
        return _fail(str(error), error.exit_code, error)
    except TyperException as error:
        return _fail(str(_usage_error(error)), ConfigError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except SystemExit as leaving:  # raised by typer when the reader of stdout closed the pipe
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        # Normal with `| head`: not an error, but nothing more may be written to stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK:
            return _unexpected(error)
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}cannot be written: {error.strerror}"
        return _fail(message, OutputError.exit_code, error)
    except Exception as error:
        return _unexpected(error)
    if code == 130:  # typer converts KeyboardInterrupt into this exit code
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> int:
    return _fail(
        f"unexpected {type(error).__name__}: {str(error).rstrip('.')}. This is a bug in finetune; "
        "run again with --debug for the traceback, and please report it.",
        1,
        error,
    )


def _usage_error(error: TyperException) -> ConfigError:
    """Return typer's error about the command line as our own.

    Typer's text spans several lines, and quotes pydantic's own prefix of a validator's message.
    """
    context = getattr(error, "ctx", None)
    command = "finetune"
    if context is not None and context.parent is not None:
        command = f"finetune {context.info_name}"
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    option = getattr(error, "option_name", "")
    to_do = f"See `{command} --help`"
    takes_set = context is not None and any("--set" in one.opts for one in context.command.params)
    if option and takes_set and (settings := _settings_meant(option, sys.argv[1:])):
        to_do = f"To set a config value, write {' or '.join(settings)}. {to_do}"
        text = error.message
    return ConfigError(text, kind="config.usage", to_do=to_do)


def _settings_meant(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the ``--set`` options that an unknown option probably stands for, with its value."""
    from finetune.config.error_messages import keys_named

    value = "VALUE"
    for at, argument in enumerate(arguments):
        name, equals, given = argument.partition("=")
        if name == option:
            following = arguments[at + 1] if at + 1 < len(arguments) else ""
            value = given if equals else following if following[:1] not in ("", "-") else value
    name = option.lstrip("-").replace("-", "_")
    return [f"--set {shlex.quote(f'{key}={value}')}" for key in keys_named(name)]


def _is_reported_here(error: BaseException | None) -> bool:
    """Return whether this process prints an error, and not another process of the run.

    Before they have joined, all on a machine meet the same errors.
    """
    try:
        before_joining = Ranks.of_environment().local_rank == 0
    except ConfigError:
        return True
    return bool(getattr(error, "is_reported_here", before_joining))


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if not _is_reported_here(error):
        signals.ignore()
        time.sleep(_HEAD_START_S)
        return code
    if support.debug_is_on:
        traceback.print_exc()
    terminal.show_error(message)
    return code
