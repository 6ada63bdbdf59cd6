"""Pictures through matplotlib, an extra that is imported when a picture is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError
from finetune.eval_results import ClassScore, ConfusedPair
from finetune.files import write_atomically
from finetune.progress import Progress, Silent
from finetune.report.lettering import shortened
from finetune.report.page.matrix import shown_classes

_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curve:
    """One run, epoch by epoch."""

    name: str
    epochs: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_top1: tuple[float, ...]

    @classmethod
    def of(cls, name: str, records: Sequence[Mapping[str, Any]]) -> Curve:
        """From the lines of ``metrics.jsonl``."""
        return cls(
            name=name,
            epochs=tuple(record["epoch"] for record in records),
            train_loss=tuple(record["loss"] for record in records),
            val_loss=tuple(record["val"]["loss"] for record in records),
            val_top1=tuple(record["val"]["top1"] for record in records),
        )


def load_matplotlib(path: Path) -> Any:
    """matplotlib's Figure, which needs no display and no global state.

    Args:
        path: What the picture will be called: refused before any work where it names no format.

    Raises:
        ConfigError: it is not installed; says how to install it.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{path}: a picture's name must end in {', '.join(_FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "pictures need matplotlib, which is not installed: pip install 'finetune-vision[plots]'"
        ) from None
    return Figure


def draw_curves(curves: Sequence[Curve], path: Path, *, progress: Progress | None = None) -> None:
    """Loss and validation accuracy of every run over its epochs, in one picture.

    Raises:
        ConfigError: the ending of ``path`` names no format.
        OutputError: it could not be written.
    """
    figure = load_matplotlib(path)(figsize=(10, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, curve in enumerate(curves):
        color = f"C{number % 10}"
        # A line of one epoch has no length: its point must show.
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
    save(figure, path, progress=progress)


def draw_confusion(
    classes: Sequence[ClassScore],
    pairs: Sequence[ConfusedPair],
    path: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """The confusion matrix, each row as shares of its class; of many classes those that are
    confused most.

    Raises:
        ConfigError, OutputError: as `draw_curves`.
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
    save(figure, path, progress=progress)


def save(
    figure: Any, path: Path, *, maker: str | None = None, progress: Progress | None = None
) -> None:
    """Write a figure, whole or not at all.

    Args:
        maker: The command that a PNG says it is from.
        progress: Is told where the font lacks letters of the names.
    """
    drawn = io.BytesIO()
    mark = {"Software": maker} if maker else None
    with warnings.catch_warnings(record=True) as caught:
        # Always: a second picture lacks its letters as well.
        warnings.simplefilter("always")
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150, metadata=mark)
    missing = [warning for warning in caught if "missing from" in str(warning.message)]
    if missing:
        (progress or Silent()).warn(
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
    """A name as it is: matplotlib would set text between dollars as mathematics, and leaves out
    of the legend what begins with an underscore."""
    text = name.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
