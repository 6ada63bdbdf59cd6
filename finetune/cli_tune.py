"""The command line of what finds settings: ``tune`` and ``lr-find``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli_options import ConfigOption, JsonOption, SetOption
from finetune.cli_support import DebugOption, emit, torch_imports
from finetune.errors import ConfigError
from finetune.terminal import TerminalProgress


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(tune)
    app.command(name="lr-find")(lr_find)


def tune(
    config: ConfigOption,
    overrides: SetOption = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=1, max=10_000, help="Random draws; default: 64 heads, else 12."
        ),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Try every combination instead of random draws.")
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=0,
            max=100,
            help="Of the cross-validation; 0: the validation split chooses.",
        ),
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            "--backbones",
            metavar="A,B=WEIGHTS",
            help="Search a head on each, and keep the best; weights as in model.weights.",
        ),
    ] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Search only; train nothing into output_dir.")
    ] = False,
    allow_slow: Annotated[
        bool,
        typer.Option("--allow-slow", help="Also where every trial is a whole training."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="For best.yaml, tune.json and tune.png; default: OUTPUT_DIR-tune.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier search and its run.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Search learning rate, weight decay, batch size, … on kept features; train by the best."""
    from finetune.config import TuneConfig
    from finetune.config_file import load_config
    from finetune.search_space import with_backbones

    loaded = load_config(config, overrides or ())
    section = loaded.tune or TuneConfig()
    if grid and (trials or section.trials):
        raise ConfigError("tune: --grid tries every combination; leave --trials out")
    if folds == 1:
        raise ConfigError("--folds: 1 fold leaves nothing to train on; give 0, or 2 and more")
    given = {"trials": trials, "folds": folds}
    told = {key: value for key, value in given.items() if value is not None}
    loaded = loaded.model_copy(update={"tune": section.model_copy(update=told)})
    several = with_backbones(loaded, backbones) if backbones is not None else []
    with torch_imports():
        from finetune.commands import tune as command
    from finetune.report.tuning import render_tune

    result = command.tune(
        loaded,
        backbones=several,
        in_grid=grid,
        final=not no_train,
        allow_slow=allow_slow,
        output=Path(output) if output is not None else None,
        overwrite=overwrite,
        progress=TerminalProgress(),
    )
    emit(result, render_tune, as_json)


def lr_find(
    config: ConfigOption,
    overrides: SetOption = None,
    lowest: Annotated[
        float, typer.Option("--min-lr", min=1e-12, max=1e3, help="The first rate.")
    ] = 1e-6,
    highest: Annotated[
        float, typer.Option("--max-lr", min=1e-12, max=1e3, help="The last one.")
    ] = 10.0,
    steps: Annotated[
        int, typer.Option("--steps", min=20, max=1_000, help="Of the optimizer, one a rate.")
    ] = 100,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="A PNG; default: NAME-lr.png here."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Test ever higher learning rates on what trains, and suggest one. Changes no weights."""
    from finetune.config_file import load_config

    loaded = load_config(config, overrides or ())
    with torch_imports():
        from finetune.commands import lr_find as command
    from finetune.report.tuning import render_lr_range

    progress = TerminalProgress()
    plot = Path(output) if output is not None else _default_plot(config, progress)
    result = command.lr_find(
        loaded, plot=plot, lowest=lowest, highest=highest, steps=steps, progress=progress
    )
    emit(result, render_lr_range, as_json)


def _default_plot(config: str, progress: TerminalProgress) -> Path | None:
    """Nobody asked for this one by name: without matplotlib there is none."""
    from finetune.report.plots import load_matplotlib

    path = Path(f"{Path(config).stem}-lr.png")
    try:
        load_matplotlib(path)
    except ConfigError as error:
        progress.warn(f"no picture of the curve: {error}")
        return None
    return path
