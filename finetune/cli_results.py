"""The command line of what comes after training: ``eval``, ``compare``, ``predict``, ``export``,
``report``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli_options import JsonOption, OptionalConfigOption, SetOption
from finetune.cli_support import DebugOption, emit, torch_imports, write_bytes
from finetune.errors import ConfigError
from finetune.terminal import TerminalProgress


class Split(str, Enum):
    """Splits that can be scored."""

    train = "train"
    val = "val"
    test = "test"


SplitOption = Annotated[Split, typer.Option("--split", help="Which split to score.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Another folder: of splits, or of classes."),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, as in runs/x, or a checkpoint file.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(name="eval")(evaluate)
    app.command()(compare)
    app.command()(predict)
    app.command()(export)
    app.command()(report)


def evaluate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="As in runs/x, or a checkpoint file.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="FILE", help="As in runs/x/best.pt.")
    ] = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    split: SplitOption = Split.val,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="For predictions.csv and metrics.json; default: beside the checkpoint.",
        ),
    ] = None,
    ignore_unknown: Annotated[
        bool,
        typer.Option("--ignore-unknown", help="Leave out classes that training does not know."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit a temperature on these images and store it in the checkpoint."
        ),
    ] = False,
    page: Annotated[
        bool, typer.Option("--report", help="Write report.html, one page to look at, as well.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Score a checkpoint on a split of its own data, or on another folder."""
    path = _checkpoint_path(run, checkpoint, config, overrides or [])
    with torch_imports():
        from finetune.commands import evaluate as command
    from finetune.report.evaluation import render_eval

    score = command.evaluate_checkpoint
    if page:
        from finetune.commands.report import evaluate_and_report as score
    result = score(
        path,
        data=data,
        split=split.value,
        output=Path(output) if output is not None else None,
        calibrate=calibrate,
        ignore_unknown=ignore_unknown,
        progress=TerminalProgress(),
    )
    emit(result, render_eval, as_json)


def _checkpoint_path(
    run: str | None, checkpoint: str | None, config: str | None, overrides: list[str]
) -> Path:
    if [run, checkpoint, config].count(None) != 2:
        raise ConfigError("eval: give one of RUN, --checkpoint FILE and --config FILE")
    if overrides and config is None:
        raise ConfigError("eval: --set has no effect without --config; use it with --config")
    if run is not None:
        from finetune.run_folder import checkpoint_of

        return checkpoint_of(run)
    if checkpoint is not None:
        return Path(checkpoint)
    from finetune.config_file import load_config
    from finetune.run_folder import BEST

    assert config is not None
    return Path(load_config(config, overrides).output_dir) / BEST


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN ...", help="Folders of runs, or checkpoints.")
    ],
    data: DataOption = None,
    split: SplitOption = Split.val,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Learning curves: a .png, .svg or .pdf file."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Runs side by side: what differs, the figures, and whether they can be told apart."""
    with torch_imports():
        from finetune.commands import compare as command
    from finetune.report.evaluation import render_comparison

    result = command.compare(
        runs,
        data=data,
        split=split.value,
        plot=Path(plot) if plot is not None else None,
        progress=TerminalProgress(),
    )
    emit(result, render_comparison, as_json)


class Form(str, Enum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def predict(
    run: RunArgument,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH ...", help="Images, folders of them, or - for a list."),
    ],
    form: Annotated[
        Form, typer.Option("--format", help="A table, CSV, or a JSON object a line.")
    ] = Form.table,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown for each image.")] = 2,
    every_class: Annotated[
        bool, typer.Option("--probabilities", help="Give the probability of every class.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, help="Below it the answer is: unsure."),
    ] = 0.0,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Default: as in training.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Label images with a trained network."""
    from finetune.report import prediction as writers

    if as_json and form is not Form.table:
        raise ConfigError("predict: give either --json or --format")
    with torch_imports():
        from finetune.commands import predict as command

    writer: Any
    if as_json:
        writer = writers.AsJson(write_bytes)
    elif form is Form.csv:
        writer = writers.AsCsv(write_bytes, every_class=every_class)
    elif form is Form.jsonl:
        writer = writers.AsJsonLines(write_bytes)
    else:
        writer = writers.AsTable(write_bytes)
    given = [
        path
        for argument in paths
        for path in (
            command.paths_of_list(sys.stdin.buffer.read()) if argument == "-" else [argument]
        )
    ]
    progress = TerminalProgress()
    summary = command.predict(
        run,
        given,
        show=writer.show,
        top=None if every_class else top,
        threshold=threshold,
        batch_size=batch_size,
        progress=progress,
    )
    writer.end(summary)
    progress.say(writers.render_predict(summary))


class ExportFormat(str, Enum):
    """Formats that a checkpoint can be written in."""

    onnx = "onnx"
    exported_program = "exported-program"
    safetensors = "safetensors"


def export(
    run: RunArgument,
    file_format: Annotated[
        ExportFormat, typer.Option("--format", help="What the other runtime reads.")
    ],
    no_preprocessing: Annotated[
        bool,
        typer.Option("--no-preprocessing", help="The bare network, for prepared float32 images."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", metavar="DIR", help="Default: export/FORMAT beside the checkpoint."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Photos to compare on, if not the run's own."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Compare on so many photos at most.")
    ] = 256,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write a network for other runtimes, and check there that it answers as eval does."""
    with torch_imports():
        from finetune.commands import export as command
    from finetune.report.prediction import render_export

    result = command.export(
        run,
        file_format=file_format.value,
        preprocessing=not no_preprocessing,
        output=Path(output) if output is not None else None,
        data=data,
        num_images=images,
        progress=TerminalProgress(),
    )
    emit(result, render_export, as_json)


class PageFormat(str, Enum):
    """What a report is written as."""

    html = "html"
    png = "png"


def report(
    run: RunArgument,
    data: DataOption = None,
    split: SplitOption = Split.val,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="PATH",
            help="The page's file or folder, the pictures' folder; default: beside the checkpoint.",
        ),
    ] = None,
    form: Annotated[
        PageFormat,
        typer.Option("--format", help="One page; or curves and confusion matrix as pictures."),
    ] = PageFormat.html,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """One page of a run: figures, curves, confusion, mistakes, and where the network looks."""
    with torch_imports():
        from finetune.commands import report as command
    from finetune.report.prediction import render_page_result

    result = command.report(
        run,
        data=data,
        split=split.value,
        output=output,
        as_pictures=form is PageFormat.png,
        progress=TerminalProgress(),
    )
    emit(result, render_page_result, as_json)


def write_page(run: str, progress: TerminalProgress) -> None:
    """``train --report``: the page of a run that has just ended."""
    from finetune.commands import report as command

    result = command.report(run, progress=progress)
    progress.say(f"report: {result.files[0]}")
