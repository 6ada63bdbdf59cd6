"""Confusion matrix in SVG coordinates; for many classes only the most confused ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.report.page.text_width import shortened, text_width
from finetune.results.evaluation import ClassScore, ConfusedPair

MOST_CLASSES = 40
_SLANT = math.radians(55)
"""Angle of the column labels, in radians."""
_SIDES = ((4, 64), (12, 36), (24, 24), (MOST_CLASSES, 16))
"""Pairs of maximum number of classes and cell size in pixels."""


@dataclass(frozen=True)
class Cell:
    """A cell; ``true`` and ``predicted`` are indices into the page's list of names."""

    x: float
    y: float
    true: int
    predicted: int
    count: int
    of: int
    strength: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix in SVG coordinates, without empty cells.

    Attributes:
        left: Width of the row labels.
        top: Height of the column labels.
        right: Margin for the slanted column labels.
    """

    size: int
    side: int
    left: int
    top: int
    right: int
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


def shown_classes(
    classes: Sequence[ClassScore], pairs: Sequence[ConfusedPair], *, most: int = MOST_CLASSES
) -> list[str]:
    """Return all classes, or those in the most misclassifications, in the original order."""
    if len(classes) <= most:
        return [row.name for row in classes]
    mistakes: Counter[str] = Counter()
    for pair in pairs:
        mistakes[pair.true] += pair.count
        mistakes[pair.predicted] += pair.count
    order = sorted(classes, key=lambda row: (-mistakes[row.name], row.name))
    chosen = {row.name for row in order[:most]}
    return [row.name for row in classes if row.name in chosen]


def matrix_of(
    classes: Sequence[ClassScore],
    pairs: Sequence[ConfusedPair],
    shown: Sequence[str],
    number: Callable[[str], int],
) -> Matrix:
    """Lay out the confusion matrix of the shown classes.

    Args:
        classes: Scores of all classes.
        pairs: Confused pairs of all classes.
        shown: Names of the classes to show.
        number: Function from a name to its index in the page's list of names.
    """
    side = next(side for most, side in _SIDES if len(shown) <= most)
    labels = tuple(map(shortened, shown))
    widths = [text_width(label) for label in labels]
    left, top = 14 + round(max(widths)), 18 + round(max(widths) * math.sin(_SLANT))
    ends = [side * (at + 0.5) + width * math.cos(_SLANT) for at, width in enumerate(widths)]
    right = 8 + max(0, round(max(ends)) - side * len(shown))
    rank = {name: at for at, name in enumerate(shown)}
    totals = {row.name: row.num_images for row in classes}
    counted = [(p.true, p.predicted, p.count) for p in pairs if {p.true, p.predicted} <= {*rank}]
    counted += [
        (row.name, row.name, row.num_correct)
        for row in classes
        if row.name in rank and row.num_correct
    ]
    counted.sort(key=lambda cell: (rank[cell[0]], rank[cell[1]]))
    return Matrix(
        size=len(shown),
        side=side,
        left=left,
        top=top,
        right=right,
        labels=labels,
        cells=tuple(
            Cell(
                x=left + side * rank[predicted] + 0.5,
                y=top + side * rank[true] + 0.5,
                true=number(true),
                predicted=number(predicted),
                count=count,
                of=totals[true],
                # The minimum keeps a single misclassification visible.
                strength=round(0.18 + 0.72 * count / max(totals[true], 1), 2),
                right=true == predicted,
            )
            for true, predicted, count in counted
        ),
    )
