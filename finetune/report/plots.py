"""Pictures through matplotlib, an extra that is imported when a picture is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError
from finetune.files import write_atomically

_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curve:
    """One run, epoch by epoch."""

    name: str
    epochs: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_top1: tuple[float, ...]


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


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
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
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    write_atomically(path, lambda file: file.write(drawn.getvalue()))


def _plain(name: str) -> str:
    """A name as it is: matplotlib would set text between dollars as mathematics, and leaves out
    of the legend what begins with an underscore."""
    text = name.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
