"""Data commands: ``check-data``, ``show-batch``, ``init`` and ``sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import (
    ConfigArgument,
    ConfigOption,
    JsonOption,
    SetOption,
    config_file,
    is_config,
    load,
    name_of,
    one_config,
)
from finetune.cli.support import DebugOption, emit, no_effect, torch_imports
from finetune.cli.terminal import TerminalReporter
from finetune.core.errors import ConfigError, DataError


def check_data(
    root: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Folder, table or dataset name, as in data.root; or a config or run, whose data "
            "is checked.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="CONFIG", help="Check the data of this config."),
    ] = None,
    overrides: SetOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Number of decoding processes.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the cached results of earlier checks.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write an HTML page that shows what was found, and a CSV of all pairs."
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="HTML file of --report (default: NAME-check.html).",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Find broken files, duplicates, leaks and imbalance.

    Inspects every image. Exits with code 3 if there is a finding of level error.
    """
    from finetune.config.load import data_of
    from finetune.data.sources.table_guess import guess_table

    if (root is None) == (config is None):
        raise ConfigError(
            "needs either DATA or --config CONFIG",
            kind="config.missing_argument",
            source="check-data",
        )
    if root is not None and (is_config(root) or config_file(root) != root):
        root, config = None, root
    if root is not None and overrides:
        raise no_effect("check-data", "--set", "without a config", "remove it")
    if output is not None and not report:
        raise no_effect("check-data", "--output", "without --report", "add --report")
    loaded = load(config, overrides) if config is not None else None
    if loaded is not None:
        data = loaded.data
    else:
        data = guess_table(data_of(root or ""), TerminalReporter())
    with torch_imports():
        from finetune.commands import check_data as command
    from finetune.report.check_data import render_check

    reporter = TerminalReporter()
    checked = command.inspect(data, config=loaded, workers=workers, fresh=fresh, reporter=reporter)
    result = checked.report
    if report:
        with torch_imports():
            from finetune.commands.check_page import write_check_page

        result = write_check_page(checked, output, reporter)
    emit(result, lambda checked: render_check(checked, config), as_json)
    if not result.ok:
        raise typer.Exit(DataError.exit_code)


def suspects(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="CSV file of all findings (default: RUN/suspects.csv, or CONFIG-suspects.csv).",
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Write an HTML page beside the CSV file, to decide about each photo and save "
            "corrections.csv.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file of another kind.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Find wrong labels, leaks, outliers and bad photos.

    Compares the features of the pretrained network, which an earlier run has cached. Labels are
    judged by heads that have not seen the photo. With --verbose, lists all findings.
    """
    given = one_config("suspects", source, config)
    loaded = load(given, overrides)
    table = Path(output) if output is not None else _suspects_file(given)
    with torch_imports():
        from finetune.commands import suspects as command
    from finetune.report.suspects import render_suspects

    result = command.suspects(
        loaded,
        source=given,
        table=table,
        page=table.with_suffix(".html") if report else None,
        overwrite=overwrite,
        reporter=TerminalReporter(),
    )
    emit(result, render_suspects, as_json)


def _suspects_file(source: str) -> Path:
    """Return the default file of all findings: in the run directory, or next to the config."""
    from finetune.checkpoints.run_dir import SUSPECTS_TABLE

    if config_file(source) != source:
        return Path(source) / SUSPECTS_TABLE
    return Path(source).with_name(f"{name_of(source)}-{SUSPECTS_TABLE}")


def show_batch(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    count: Annotated[
        int, typer.Option("--count", min=1, max=200, help="Number of images per split.")
    ] = 12,
    epoch: Annotated[
        int, typer.Option("--epoch", min=1, help="Epoch whose training batch is drawn, from 1.")
    ] = 1,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="PNG file (default: NAME-batch.png)."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Draw augmented training and validation images as a PNG.

    The sheet shows the network's input after preprocessing, with class names.
    """
    given = one_config("show-batch", source, config)
    loaded = load(given, overrides)
    with torch_imports():
        from finetune.commands import show_batch as command
    from finetune.report.show_batch import render_shown_batch

    result = command.show_batch(
        loaded,
        Path(output or f"{name_of(given)}-batch.png"),
        epoch=epoch,
        count=count,
        reporter=TerminalReporter(),
    )
    emit(result, render_shown_batch, as_json)


def init(
    root: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder, table or dataset name, as in data.root."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Backbone, as listed by `finetune models`."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option("--weights", metavar="PATH", help="Pretrained weights, as in model.weights."),
    ] = "DEFAULT",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE instead of stdout."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing --output file.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write a commented config for a folder of photos.

    The config can be trained without editing.
    """
    from finetune.config.load import data_of, model_of
    from finetune.config.model_registry import BUILDERS, BUNDLED_MODEL
    from finetune.core.files import refuse_to_replace
    from finetune.data.checks.summary import summarize_dataset
    from finetune.data.sources.table_guess import guess_table

    assumed = BUNDLED_MODEL if weights == "bundled" else BUILDERS[0]
    model_of(model or assumed, weights)
    data = data_of(root)
    if output is not None:
        refuse_to_replace(Path(output), overwrite=overwrite)
    reporter = TerminalReporter()
    summary = summarize_dataset(guess_table(data, reporter), reporter)
    with torch_imports():
        from finetune.commands import init as command
    from finetune.report.starting_config import render_starting_config

    result = command.init(
        summary, model=model, weights=weights, output=Path(output) if output else None
    )
    emit(result, render_starting_config, as_json)


def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to make.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Draw a sample data set to try the commands with.

    The images are drawings of eight figures, not photos, in the folders train, val and test.
    """
    from finetune.commands.sample import sample as command
    from finetune.report.sample import render_sample

    emit(command(Path(folder), reporter=TerminalReporter()), render_sample, as_json)
