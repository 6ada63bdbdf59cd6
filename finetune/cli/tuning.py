"""Commands on features before training: ``tune``, ``lr-find`` and ``learning-curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import (
    ConfigArgument,
    ConfigOption,
    JsonOption,
    SetOption,
    load,
    name_of,
    one_config,
)
from finetune.cli.support import DebugOption, emit, torch_imports
from finetune.cli.terminal import TerminalReporter
from finetune.config.base import AUTO
from finetune.core.errors import ConfigError


def tune(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            min=1,
            max=10_000,
            help="Random trials (default: 64 for a head, else 12); from 16 on, a quarter as many "
            "follow around the best.",
        ),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Try every combination instead of random trials.")
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=0,
            max=100,
            help="Cross-validation folds; 0 selects on the validation split.",
        ),
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            "--backbones",
            metavar="A,B=WEIGHTS",
            help="Search a head on each backbone; weights as in model.weights. auto: the config's "
            "own and others that train.budget allows.",
        ),
    ] = None,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Search without training the final model.")
    ] = False,
    allow_slow: Annotated[
        bool,
        typer.Option("--allow-slow", help="Allow searches whose trials are full training runs."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for best.yaml, tune.json and tune.png (default: OUTPUT_DIR-tune).",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing search and its run.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Search hyperparameters, then train with the best.

    Varies learning rate, weight decay, batch size and the other keys of the config section tune,
    on cached features.
    """
    from finetune.config.schema import TuneConfig
    from finetune.tuning.search_space import with_backbones

    loaded = load(one_config("tune", source, config), overrides)
    section = loaded.tune or TuneConfig()
    if grid and (trials or section.trials):
        raise ConfigError(
            "excludes --trials, since it tries every combination",
            kind="config.conflict",
            source="tune",
            key="--grid",
            to_do="remove one of them",
        )
    if folds == 1:
        raise ConfigError(
            "1 fold leaves no training images",
            kind="config.invalid_value",
            key="--folds",
            to_do="use 0, or 2 or more",
        )
    given = {"trials": trials, "folds": folds}
    told = {f"tune.{key}": value for key, value in given.items() if value is not None}
    loaded = loaded.with_values(told)
    automatic = backbones == AUTO
    own = loaded.model.name
    several = [] if backbones is None else with_backbones(loaded, own if automatic else backbones)
    with torch_imports():
        from finetune.commands import tune as command
    from finetune.report.tuning import render_tune
    from finetune.tuning.search import SearchOptions

    result = command.tune(
        loaded,
        backbones="auto" if automatic else several,
        options=SearchOptions(in_grid=grid, allow_slow=allow_slow),
        final=not no_train,
        output=Path(output) if output is not None else None,
        overwrite=overwrite,
        reporter=TerminalReporter(),
    )
    emit(result, render_tune, as_json)


def lr_find(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    lowest: Annotated[
        float, typer.Option("--min-lr", min=1e-12, max=1e3, help="First learning rate.")
    ] = 1e-6,
    highest: Annotated[
        float, typer.Option("--max-lr", min=1e-12, max=1e3, help="Last learning rate.")
    ] = 10.0,
    steps: Annotated[
        int,
        typer.Option("--steps", min=20, max=1_000, help="Optimizer steps, one per learning rate."),
    ] = 100,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="PNG file (default: NAME-lr.png)."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Run a learning-rate range test and suggest a rate.

    Increases the learning rate at each step on the trainable part. Changes no weights.
    """
    given = one_config("lr-find", source, config)
    loaded = load(given, overrides)
    with torch_imports():
        from finetune.commands import lr_find as command
    from finetune.report.tuning import render_lr_range

    reporter = TerminalReporter()
    plot = Path(output) if output is not None else default_plot(given, "lr", reporter)
    result = command.lr_find(
        loaded, plot=plot, lowest=lowest, highest=highest, steps=steps, reporter=reporter
    )
    emit(result, render_lr_range, as_json)


def learning_curve(
    source: ConfigArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="PNG file (default: NAME-curve.png)."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Show how accuracy grows with the number of training photos.

    Fits heads on parts of the training photos, and projects their accuracy to twice the photos,
    overall and by class. The network stays frozen with its pretrained weights.
    """
    given = one_config("learning-curve", source, config)
    loaded = load(given, overrides)
    with torch_imports():
        from finetune.commands import learning_curve as command
    from finetune.checkpoints import run_dir
    from finetune.core.files import write_text
    from finetune.report.json_text import to_json
    from finetune.report.learning_curve import render_learning_curve

    reporter = TerminalReporter()
    picture = Path(output) if output is not None else default_plot(given, "curve", reporter)
    result = command.learning_curve(loaded, picture=picture, reporter=reporter)
    if (Path(given) / run_dir.BEST).is_file():  # the page of the run shows it
        write_text(Path(given) / run_dir.LEARNING_CURVE, to_json(result) + "\n")
    emit(result, render_learning_curve, as_json)


def default_plot(config: str, what: str, reporter: TerminalReporter) -> Path | None:
    """Return the default path of a plot, or None with a warning if matplotlib is missing."""
    from finetune.report.plots import load_matplotlib

    path = Path(f"{name_of(config)}-{what}.png")
    try:
        load_matplotlib(path)
    except ConfigError as error:
        reporter.warn(f"no picture of the curve: {error}")
        return None
    return path
