"""Confusion matrix in SVG coordinates; for many classes only the most confused ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.report.page.text_width import shortened, text_width
from finetune.results.evaluation import ClassScore, ConfusedPair

MOST_CLASSES = 40
IN_ORDER = 12
"""Number of classes that are found at a glance without an order by similarity."""
_SLANT = math.radians(55)
"""Angle of the column labels, in radians."""
_SIDES = ((4, 64), (12, 36), (24, 24), (MOST_CLASSES, 16))
"""Pairs of maximum number of classes and cell size in pixels."""


@dataclass(frozen=True)
class Cell:
    """A cell; ``true`` and ``predicted`` are indices into the page's list of names.

    ``predicted`` is None in the last column, of all classes that are not shown.
    """

    x: float
    y: float
    true: int
    predicted: int | None
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
        columns: Number of columns; one more than ``size`` if there are classes that are not shown.
        labels: Index into the page's list of names, and text, of each shown class.
    """

    size: int
    columns: int
    side: int
    left: int
    top: int
    right: int
    labels: tuple[tuple[int, str], ...]
    cells: tuple[Cell, ...]


def shown_classes(
    classes: Sequence[ClassScore], pairs: Sequence[ConfusedPair], *, most: int = MOST_CLASSES
) -> list[str]:
    """Return all classes, or those of the most confused pairs.

    Up to `IN_ORDER` classes stay in the original order; more are ordered by similarity.

    Args:
        pairs: Confused pairs, most frequent first.
    """
    names = [row.name for row in classes]
    if len(names) > most:
        chosen: dict[str, None] = {}
        for pair in pairs:
            both = chosen | {pair.true: None, pair.predicted: None}
            if len(both) <= most:
                chosen = both
        spare = [name for name in names if name not in chosen][: most - len(chosen)]
        names = [name for name in names if name in chosen or name in spare]
    return names if len(names) <= IN_ORDER else _by_similarity(names, pairs)


def _by_similarity(names: Sequence[str], pairs: Sequence[ConfusedPair]) -> list[str]:
    """Order classes so that those often confused with each other are neighbours.

    Starting from chains of one class, the ends of two chains are joined in the order of how often
    the two classes at them are confused; classes without mistakes come last.
    """
    rank = {name: at for at, name in enumerate(names)}
    mistakes: Counter[tuple[int, int]] = Counter()
    for pair in pairs:
        if pair.true in rank and pair.predicted in rank:
            first, second = sorted((rank[pair.true], rank[pair.predicted]))
            mistakes[first, second] += pair.count
    chains = [[at] for at in range(len(names))]
    order: dict[int, None] = {}
    for first, second in sorted(mistakes, key=lambda ends: (-mistakes[ends], ends)):
        order |= {first: None, second: None}
        left, right = chains[first], chains[second]
        if left is right or first not in (left[0], left[-1]) or second not in (right[0], right[-1]):
            continue
        if left[-1] != first:
            left.reverse()
        if right[0] != second:
            right.reverse()
        left += right
        for at in right:
            chains[at] = left
    placed = dict.fromkeys(at for start in [*order, *range(len(names))] for at in chains[start])
    return [names[at] for at in placed]


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
    texts = [shortened(name) for name in shown]
    heads = texts + ["others"] * (len(shown) < len(classes))
    widths = [text_width(text) for text in heads]
    left, top = 14 + round(max(widths)), 18 + round(max(widths) * math.sin(_SLANT))
    ends = [side * (at + 0.5) + width * math.cos(_SLANT) for at, width in enumerate(widths)]
    right = 8 + max(0, round(max(ends)) - side * len(heads))
    rank = {name: at for at, name in enumerate(shown)}
    totals = {row.name: row.num_images for row in classes}
    counted = {
        (rank[row.name], rank[row.name]): row.num_correct
        for row in classes
        if row.name in rank and row.num_correct
    }
    for pair in pairs:
        if pair.true in rank:
            place = rank[pair.true], rank.get(pair.predicted, len(shown))
            counted[place] = counted.get(place, 0) + pair.count
    return Matrix(
        size=len(shown),
        columns=len(heads),
        side=side,
        left=left,
        top=top,
        right=right,
        labels=tuple((number(name), text) for name, text in zip(shown, texts, strict=True)),
        cells=tuple(
            Cell(
                x=left + side * column + 0.5,
                y=top + side * row + 0.5,
                true=number(shown[row]),
                predicted=number(shown[column]) if column < len(shown) else None,
                count=count,
                of=totals[shown[row]],
                # The minimum keeps a single misclassification visible.
                strength=round(0.18 + 0.72 * count / max(totals[shown[row]], 1), 2),
                right=row == column,
            )
            for (row, column), count in sorted(counted.items())
        ),
    )
