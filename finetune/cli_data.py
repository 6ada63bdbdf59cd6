"""Commands about data: what is in it, what the network sees of it, and a config to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli_options import ConfigOption, JsonOption, SetOption
from finetune.cli_support import DebugOption, emit, torch_imports
from finetune.errors import ConfigError, DataError
from finetune.terminal import TerminalProgress


def check_data(
    root: Annotated[
        str | None, typer.Argument(metavar="[ROOT]", help="As data.root: a folder, a table, …")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE", help="Check the data of this config."),
    ] = None,
    overrides: SetOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Processes that decode.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Decode again what earlier checks remember.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Look at every image before training: broken files, duplicates, leaks, imbalance."""
    from finetune.config_file import data_of, load_config
    from finetune.data.table_guess import guess_table

    if (root is None) == (config is None):
        raise ConfigError("check-data: give either ROOT or --config FILE")
    if root is not None and overrides:
        raise ConfigError("check-data: --set has no effect with ROOT; use it with --config")
    loaded = load_config(config, overrides or ()) if config is not None else None
    if loaded is not None:
        data = loaded.data
    else:
        data = guess_table(data_of(root or ""), TerminalProgress())
    with torch_imports():
        from finetune.commands import check_data as command
    from finetune.report.check import render_check

    report = command.check_data(
        data, config=loaded, workers=workers, fresh=fresh, progress=TerminalProgress()
    )
    emit(report, render_check, as_json)
    if not report.ok:
        raise typer.Exit(DataError.exit_code)


def show_batch(
    config: ConfigOption,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A PNG; default: NAME-batch.png here."),
    ] = None,
    epoch: Annotated[int, typer.Option("--epoch", min=1, help="Of which epoch.")] = 1,
    count: Annotated[
        int, typer.Option("--count", min=1, max=200, help="Pictures of each split.")
    ] = 12,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Draw what the network sees, training and validation, into one picture with class names."""
    from finetune.config_file import load_config

    loaded = load_config(config, overrides or ())
    with torch_imports():
        from finetune.commands import show_batch as command
    from finetune.report.data_text import render_shown_batch

    result = command.show_batch(
        loaded,
        Path(output or f"{Path(config).stem}-batch.png"),
        epoch=epoch,
        count=count,
        progress=TerminalProgress(),
    )
    emit(result, render_shown_batch, as_json)


def init(
    root: Annotated[str, typer.Argument(metavar="DATA", help="As data.root: a folder, a table, …")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="A backbone of `finetune models`."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option("--weights", metavar="PATH", help="A file of weights, or bundled, or none."),
    ] = "DEFAULT",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there instead of on stdout."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that --output names.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Look at photos and write a commented config for them, which trains as it stands."""
    from finetune.backbones import BUILDERS, BUNDLED_MODEL
    from finetune.config_file import data_of, model_of
    from finetune.data.glance import glance_at
    from finetune.data.table_guess import guess_table
    from finetune.files import refuse_to_replace

    assumed = BUNDLED_MODEL if weights == "bundled" else BUILDERS[0]
    model_of(model or assumed, weights)
    data = data_of(root)
    if output is not None:
        refuse_to_replace(Path(output), overwrite=overwrite)
    progress = TerminalProgress()
    glance = glance_at(guess_table(data, progress), progress)
    with torch_imports():
        from finetune.commands import init as command
    from finetune.report.starting_config import render_starting_config

    result = command.init(
        glance, model=model, weights=weights, output=Path(output) if output else None
    )
    emit(result, render_starting_config, as_json)
