"""Plots of runs with matplotlib, an optional dependency that is imported on demand."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.core.errors import ConfigError
from finetune.core.files import user_cache, write_atomically
from finetune.core.reporter import Reporter, SilentReporter
from finetune.report.page.confusion import shown_classes
from finetune.report.page.text_width import shortened
from finetune.results.evaluation import ClassScore, ConfusedPair

_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curve:
    """Metrics of one run per epoch."""

    name: str
    epochs: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_top1: tuple[float, ...]

    @classmethod
    def of(cls, name: str, records: Sequence[Mapping[str, Any]]) -> Curve:
        """Create a curve from the records of ``metrics.jsonl``."""
        return cls(
            name=name,
            epochs=tuple(record["epoch"] for record in records),
            train_loss=tuple(record["loss"] for record in records),
            val_loss=tuple(record["val"]["loss"] for record in records),
            val_top1=tuple(record["val"]["top1"] for record in records),
        )


def load_matplotlib(path: Path) -> Any:
    """Import and return matplotlib's ``Figure``, which needs no display and no global state.

    Args:
        path: Output file of the plot; its extension is checked.

    Raises:
        ConfigError: the extension is not supported, or matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(
            "is not the name of a picture",
            kind="config.plot_format",
            path=path,
            to_do=f"use a name that ends in {', '.join(_FORMATS)}",
        )
    _give_matplotlib_a_folder()
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "plots need the package matplotlib, which is not installed",
            kind="config.missing_package",
            to_do="install it with `python -m pip install 'finetune-vision[plots]'`",
        ) from None
    return Figure


def _give_matplotlib_a_folder() -> None:
    """Set matplotlib's folder to a temporary one for a user without a home folder.

    Otherwise matplotlib makes one itself when it is imported, with a warning beside our own.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return
    try:
        user_cache()
    except OSError:
        folder = tempfile.mkdtemp(prefix="finetune-matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = folder


def draw_curves(curves: Sequence[Curve], path: Path, *, reporter: Reporter | None = None) -> None:
    """Plot loss and validation accuracy of every run per epoch, in one figure.

    Raises:
        ConfigError: the extension of ``path`` is not supported, or matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = load_matplotlib(path)(figsize=(10, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, curve in enumerate(curves):
        color = f"C{number % 10}"
        # A line of a single epoch is invisible without a marker.
        marker = "o" if len(curve.epochs) == 1 else ""
        losses.plot(
            curve.epochs, curve.train_loss, color=color, linestyle=":", marker=marker, label="_"
        )
        losses.plot(curve.epochs, curve.val_loss, color=color, marker=marker, label="_")
        accuracies.plot(
            curve.epochs,
            [100 * share for share in curve.val_top1],
            color=color,
            marker=marker,
            label=_plain(curve.name),
        )
    losses.set(title="Loss: training dotted, validation solid", xlabel="epoch")
    accuracies.set(title="Validation top-1, %", xlabel="epoch")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", frameon=False, ncols=2)
    save(figure, path, reporter=reporter)


def draw_confusion(
    classes: Sequence[ClassScore],
    pairs: Sequence[ConfusedPair],
    path: Path,
    *,
    reporter: Reporter | None = None,
) -> None:
    """Plot the confusion matrix with normalized rows; of many classes the most confused.

    Raises:
        ConfigError, OutputError: same as `draw_curves`.
    """
    names = shown_classes(classes, pairs)
    rank = {name: at for at, name in enumerate(names)}
    counts = [[0] * len(names) for _ in names]
    for row in classes:
        if row.name in rank:
            counts[rank[row.name]][rank[row.name]] = row.num_correct
    for pair in pairs:
        if {pair.true, pair.predicted} <= {*rank}:
            counts[rank[pair.true]][rank[pair.predicted]] = pair.count
    totals = {row.name: max(row.num_images, 1) for row in classes}
    shares = [[n / totals[name] for n in row] for name, row in zip(names, counts, strict=True)]
    side = max(3.5, 1.5 + 0.42 * len(names))
    figure = load_matplotlib(path)(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_plain(shortened(name)) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted", ylabel="true")
    for y, line in enumerate(counts):
        for x, number in enumerate(line):
            if number:
                color = "white" if shares[y][x] > 0.6 else "black"
                axes.text(x, y, str(number), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    save(figure, path, reporter=reporter)


def save(
    figure: Any, path: Path, *, maker: str | None = None, reporter: Reporter | None = None
) -> None:
    """Write a figure atomically.

    Args:
        figure: matplotlib figure.
        path: Output file; its extension selects the format.
        maker: Command recorded in the metadata as the software that wrote the file.
        reporter: Reporter of a warning about glyphs that the font lacks.
    """
    drawn = io.BytesIO()
    mark = {"Software": maker} if maker else None
    with warnings.catch_warnings(record=True) as caught:
        # By default Python shows a warning once, but every figure must be checked.
        warnings.simplefilter("always")
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150, metadata=mark)
    missing = [warning for warning in caught if "missing from" in str(warning.message)]
    if missing:
        (reporter or SilentReporter()).warn(
            f"{path}: matplotlib's font lacks letters of these names and shows boxes in their "
            "place; the page of `finetune report` shows them"
        )
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    write_atomically(path, lambda file: file.write(drawn.getvalue()))


def _plain(name: str) -> str:
    """Escape a name for matplotlib.

    It would render text between dollars as math, and omit names that begin with an underscore from
    the legend.
    """
    text = name.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
