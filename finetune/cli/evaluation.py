"""Commands on trained checkpoints: ``eval``, ``compare``, ``predict``, ``embed``, ``next``,
``export``, ``report``."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import (
    JsonOption,
    OptionalConfigOption,
    SetOption,
    load,
    name_of,
    run_named,
)
from finetune.cli.support import DebugOption, emit, no_effect, show, torch_imports, write_bytes
from finetune.cli.terminal import TerminalReporter
from finetune.core.errors import ConfigError
from finetune.core.reporter import Reporter


class Split(str, Enum):
    """Splits that can be evaluated."""

    train = "train"
    val = "val"
    test = "test"


SplitOption = Annotated[Split, typer.Option("--split", help="Split to evaluate.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder to use instead of the run's own data."),
]
_RUN = "Run directory (runs/x), checkpoint file, or config file of the run."
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=_RUN)]


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help=_RUN),
    ] = None,
    split: SplitOption = Split.val,
    data: DataOption = None,
    page: Annotated[
        bool, typer.Option("--report", help="Also write an HTML report (report.html).")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit a temperature and the limits of the answers, and store them in the "
            "checkpoint.",
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Folder for predictions.csv and metrics.json (default: next to the checkpoint).",
        ),
    ] = None,
    ignore_unknown: Annotated[
        bool,
        typer.Option("--ignore-unknown", help="Skip images of classes unknown to the checkpoint."),
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="FILE", help="Checkpoint file (runs/x/best.pt)."),
    ] = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Evaluate a checkpoint on a split or another folder.

    Give exactly one of RUN, --checkpoint and --config. --set requires --config. By default the
    validation split of the run's own data is evaluated.
    """
    path = _checkpoint_path(run, checkpoint, config, overrides or [])
    with torch_imports():
        from finetune.commands import evaluate as command
    from finetune.report.evaluation import render_eval

    score = command.evaluate_checkpoint
    if page:
        from finetune.commands.report import evaluate_and_report as score
    result = score(
        path,
        command.EvalOptions(
            data=data, split=split.value, calibrate=calibrate, ignore_unknown=ignore_unknown
        ),
        output=Path(output) if output is not None else None,
        reporter=TerminalReporter(),
    )
    emit(result, render_eval, as_json)


def _checkpoint_path(
    run: str | None, checkpoint: str | None, config: str | None, overrides: list[str]
) -> Path:
    if [run, checkpoint, config].count(None) != 2:
        raise ConfigError(
            "needs exactly one of RUN, --checkpoint FILE and --config FILE",
            kind="config.missing_argument",
            source="eval",
        )
    if overrides and config is None:
        raise no_effect("eval", "--set", "without --config", "add --config FILE, or remove it")
    if run is not None:
        from finetune.checkpoints.run_dir import checkpoint_of

        return checkpoint_of(run_named(run))
    if checkpoint is not None:
        return Path(checkpoint)
    from finetune.checkpoints.run_dir import BEST

    assert config is not None
    return Path(load(config, overrides).output_dir) / BEST


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Two or more run directories or checkpoint files."),
    ],
    data: DataOption = None,
    split: SplitOption = Split.val,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Plot the learning curves (png, svg, pdf)."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Compare runs: config differences, metrics, significance.

    Pairs of runs are compared by McNemar's exact test with Holm's correction.
    """
    with torch_imports():
        from finetune.commands import compare as command
    from finetune.report.evaluation import render_comparison

    result = command.compare(
        [run_named(run) for run in runs],
        data=data,
        split=split.value,
        plot=Path(plot) if plot is not None else None,
        reporter=TerminalReporter(),
    )
    emit(result, render_comparison, as_json)


class Form(str, Enum):
    """Output formats of ``predict``."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def predict(
    run: RunArgument,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images or folders; - reads paths from stdin."),
    ],
    form: Annotated[
        Form, typer.Option("--format", help="Output format; jsonl is one JSON object per line.")
    ] = Form.table,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of classes per image.")] = 2,
    every_class: Annotated[
        bool, typer.Option("--probabilities", help="Output the probability of every class.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, help="Mark less probable labels as unsure."),
    ] = 0.0,
    sort_into: Annotated[
        str | None,
        typer.Option(
            "--sort-into",
            metavar="DIR",
            help="Make a folder with links to the images, by class, to those below --threshold in "
            "unsure, and to those unlike the training photos in unlike.",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            min=0.01,
            max=0.999,
            help="Add a prediction set to each image: classes among which is the true one for "
            "this share of photos like the training photos.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images per batch (default: as in training)."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Predict the classes of images with a trained network.

    Images unlike the training photos are marked.
    """
    from finetune.report import prediction as writers
    from finetune.report.sorted_folders import Sorter

    if as_json and form is not Form.table:
        raise ConfigError(
            "--json and --format exclude each other",
            kind="config.conflict",
            source="predict",
            to_do="remove one of them",
        )
    sorter = None if sort_into is None else Sorter(Path(sort_into))
    with torch_imports():
        from finetune.commands import predict as command

    writer: Any
    if as_json:
        writer = writers.AsJson(write_bytes)
    elif form is Form.csv:
        writer = writers.AsCsv(write_bytes, others=top - 1, every_class=every_class)
    elif form is Form.jsonl:
        writer = writers.AsJsonLines(write_bytes)
    else:
        writer = writers.AsTable(show)
    reporter = TerminalReporter()

    def show_and_sort(names: Any, answer: Any) -> None:
        writer.show(names, answer)
        if sorter is not None:
            sorter.add(names, answer)

    summary = command.predict(
        run_named(run),
        _with_lists(paths),
        show=show_and_sort,
        top=None if every_class else top,
        threshold=threshold,
        coverage=coverage,
        batch_size=batch_size,
        reporter=reporter,
    )
    if sorter is not None:
        summary = replace(summary, sorted_into=sorter.write(reporter))
    writer.end(summary)
    if as_json or form is not Form.table:
        reporter.say(writers.render_predict(summary))


def _with_lists(paths: list[str]) -> list[str]:
    """Replace ``-`` by the paths that stdin lists."""
    from finetune.commands.predict import paths_of_list

    return [
        path
        for argument in paths
        for path in (paths_of_list(sys.stdin.buffer.read()) if argument == "-" else [argument])
    ]


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] PATH",
            help="Run directory or checkpoint file, unless --config is given; then images or "
            "folders; - reads paths from stdin.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", metavar="FILE", help="File to write: .npz, .csv or .parquet."),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output file.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="Use the pretrained network of this config instead of a run.",
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write the embeddings of images: the inputs of the head.

    The file also has the path, class and split of each image where they are known, and with a RUN
    the predicted class.
    """
    from finetune.report.embeddings import open_writer, render_embed

    if overrides and config is None:
        raise no_effect("embed", "--set", "without --config", "add --config FILE, or remove it")
    if config is None and len(paths) < 2:
        raise ConfigError(
            "needs RUN and images, or --config FILE and images",
            kind="config.missing_argument",
            source="embed",
        )
    source: Any = load(config, overrides) if config is not None else run_named(paths[0])
    writer = open_writer(Path(output), overwrite=overwrite)
    with torch_imports():
        from finetune.commands import embed as command

    given = _with_lists(paths if config is not None else paths[1:])
    result = command.embed(source, given, writer=writer, reporter=TerminalReporter())
    emit(result, render_embed, as_json)


def next_photos(
    run: RunArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="POOL", help="Unlabelled images or folders; - reads paths from stdin."
        ),
    ],
    count: Annotated[
        int, typer.Option("--count", min=1, max=10_000, help="Number of images to choose.")
    ] = 20,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="CSV file (default: NAME-next.csv); the contact sheet is the same name with .png.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output file.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Choose the unlabelled images to label first.

    Chooses images that the network is unsure of and that differ from each other, without
    near-copies of each other or of the run's own images.
    """
    with torch_imports():
        from finetune.commands import next_photos as command
    from finetune.report.next_photos import render_next

    named = run_named(run)
    result = command.next_photos(
        named,
        _with_lists(paths),
        output=Path(output or f"{name_of(named)}-next.csv"),
        count=count,
        overwrite=overwrite,
        reporter=TerminalReporter(),
    )
    emit(result, render_next, as_json)


class ExportFormat(str, Enum):
    """Export formats."""

    onnx = "onnx"
    exported_program = "exported-program"
    safetensors = "safetensors"


def export(
    run: RunArgument,
    file_format: Annotated[ExportFormat, typer.Option("--format", help="Export format.")],
    no_preprocessing: Annotated[
        bool,
        typer.Option("--no-preprocessing", help="Expect preprocessed float32 images as input."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Folder (default: export/FORMAT next to the checkpoint).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Images for verification (default: the run's)."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Maximum number of images for verification.")
    ] = 256,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Export a network for other runtimes and verify it.

    Verification runs the exported network on real images and compares its outputs with eval's.
    """
    with torch_imports():
        from finetune.commands import export as command
    from finetune.report.prediction import render_export

    result = command.export(
        run_named(run),
        file_format=file_format.value,
        preprocessing=not no_preprocessing,
        output=Path(output) if output is not None else None,
        data=data,
        num_images=images,
        reporter=TerminalReporter(),
    )
    emit(result, render_export, as_json)


class PageFormat(str, Enum):
    """Output formats of ``report``."""

    html = "html"
    png = "png"


class MapMethod(str, Enum):
    """Methods of a map of embeddings."""

    pca = "pca"
    umap = "umap"
    auto = "auto"


def report(
    run: RunArgument,
    data: DataOption = None,
    split: SplitOption = Split.val,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="PATH",
            help="HTML file or folder; with png, a folder (default: next to the checkpoint).",
        ),
    ] = None,
    form: Annotated[
        PageFormat,
        typer.Option("--format", help="HTML page, or curves and confusion matrix as PNG files."),
    ] = PageFormat.html,
    map_method: Annotated[
        MapMethod | None,
        typer.Option(
            "--map",
            help="Add a two-dimensional map of the embeddings; auto is UMAP if umap-learn is "
            "installed, else PCA.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write an HTML report of a run.

    Contains metrics, learning curves, the confusion matrix, misclassified images and Grad-CAM maps.
    """
    from finetune.report.page.embedding_map import choose_method

    if map_method is not None and form is PageFormat.png:
        raise no_effect("report", "--map", "with --format png", "remove one of them")
    method = None if map_method is None else choose_method(map_method.value)
    with torch_imports():
        from finetune.commands import report as command
    from finetune.report.prediction import render_page_result

    result = command.report(
        run_named(run),
        data=data,
        split=split.value,
        output=output,
        as_pictures=form is PageFormat.png,
        map_method=method,
        reporter=TerminalReporter(),
    )
    emit(result, render_page_result, as_json)


def write_page(run: str, reporter: Reporter) -> None:
    """Write the HTML report of a finished run, for ``train --report``."""
    from finetune.commands import report as command

    result = command.report(run, reporter=reporter)
    reporter.say(f"report: {result.files[0]}")
