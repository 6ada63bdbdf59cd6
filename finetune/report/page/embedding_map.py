"""Map of the embeddings in SVG coordinates: the choice of the method, and the layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.core.errors import ConfigError
from finetune.core.text import plural
from finetune.report.page.confusion import shown_classes
from finetune.results.evaluation import EvalResult

MOST_COLOURS = 10
"""Number of colours that can be told apart; the style sheet has as many."""
_WIDTH, _LEAST_HEIGHT, _MOST_HEIGHT, _MARGIN = 720, 160, 540, 16
_MANY = 400
"""Number of points from which they are drawn smaller."""


@dataclass(frozen=True)
class MapPoint:
    """An image on the map.

    Attributes:
        x, y: Position in the units of the projection; y points upwards.
        photo: Data URL of the thumbnail.
    """

    x: float
    y: float
    path: str
    true: str
    predicted: str
    photo: str


@dataclass(frozen=True)
class EmbeddingMap:
    """Map of the embeddings of the evaluated images.

    Attributes:
        method: ``pca`` or ``umap``.
        dimensions: Number of values of an embedding.
        shares: Share of the variance along each axis; None for UMAP.
        points: Images that are drawn.
        num_mistakes: Number of misclassified images that have a position; others may not be drawn.
        num_positions: Number of images that have a position.
        problem: Why the map is empty; None if it is not.
    """

    method: str
    dimensions: int
    shares: tuple[float, float] | None
    points: Sequence[MapPoint]
    num_mistakes: int
    num_positions: int
    problem: str | None = None


def choose_method(asked: str) -> str:
    """Return ``pca`` or ``umap``; ``auto`` becomes ``umap`` if umap-learn can be imported.

    Raises:
        ConfigError: ``umap`` was asked for, and umap-learn cannot be imported.
    """
    if asked == "pca":
        return asked
    try:
        from umap import UMAP  # noqa: F401  # at once, before anything is computed
    except ImportError as error:
        if asked == "auto":
            return "pca"
        missing = isinstance(error, ModuleNotFoundError) and error.name == "umap"
        what = "is not installed" if missing else f"cannot be imported ({error})"
        raise ConfigError(
            f"a map by UMAP needs the package umap-learn, which {what}",
            kind="config.missing_package",
            source="report",
            key="--map",
            to_do="install it with `python -m pip install 'finetune-vision[map]'`, or use "
            "--map pca",
        ) from None
    return "umap"


def lay_out(
    drawn: EmbeddingMap, result: EvalResult, number: Callable[[str], int]
) -> dict[str, Any]:
    """Return the template's variable ``page.map``.

    Args:
        result: Evaluation whose classes are coloured: all, or those of the most confused pairs.
        number: Function from a name to its index in the page's list of names.
    """
    coloured = shown_classes(result.per_class, result.confused, most=MOST_COLOURS)
    kinds = {name: f"c{at}" for at, name in enumerate(coloured)}
    legend = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    others = len(result.per_class) - len(coloured)
    if others:
        legend.append({"name": plural(others, "other class"), "kind": "other"})
    places, height = _places(drawn.points)
    points = [
        {
            "x": x,
            "y": y,
            "kind": kinds.get(point.true, "other"),
            "wrong": point.true != point.predicted,
            "true_at": number(point.true),
            "predicted_at": number(point.predicted),
            "path": point.path,
            "photo": point.photo,
        }
        for (x, y), point in zip(places, drawn.points, strict=True)
    ]
    return {
        "title": f"Map of the embeddings by {drawn.method.upper()}",
        "problem": drawn.problem,
        "method_text": _method_text(drawn),
        "points_text": _points_text(drawn, result),
        "classes_text": f"The {MOST_COLOURS} classes of the most confused pairs are coloured."
        if others
        else "",
        "width": _WIDTH,
        "height": height,
        "size": 3 if len(points) >= _MANY else 4.5,
        # What is drawn last is on top.
        "points": sorted(points, key=lambda point: (point["kind"] != "other", point["wrong"])),
        "legend": legend,
    }


def _places(points: Sequence[MapPoint]) -> tuple[list[tuple[float, float]], int]:
    """Return positions in SVG coordinates, with one scale for both axes, and the height."""
    if not points:
        return [], _LEAST_HEIGHT
    left, right = min(point.x for point in points), max(point.x for point in points)
    low, high = min(point.y for point in points), max(point.y for point in points)
    width, most = _WIDTH - 2 * _MARGIN, _MOST_HEIGHT - 2 * _MARGIN
    # The largest span may be 0: of a selection in which all positions are equal.
    scale = 1 / max((right - left) / width, (high - low) / most, 1e-300)
    height = max(_LEAST_HEIGHT, round((high - low) * scale) + 2 * _MARGIN)
    return [
        (
            round(_WIDTH / 2 + (point.x - (left + right) / 2) * scale, 1),
            round(height / 2 - (point.y - (low + high) / 2) * scale, 1),
        )
        for point in points
    ], height


def _method_text(drawn: EmbeddingMap) -> str:
    text = (
        f"{drawn.method.upper()} of the embeddings (the inputs of the head, {drawn.dimensions:,} "
        "values for each image)"
    )
    if drawn.shares is None:
        return (
            f"{text}: similar images are close together; the axes and large distances have no "
            "meaning."
        )
    first, second = drawn.shares
    return (
        f"{text}: {first:.1%} of their variance is along the horizontal axis, {second:.1%} along "
        "the vertical one."
    )


def _points_text(drawn: EmbeddingMap, result: EvalResult) -> str:
    shown, there = len(drawn.points), drawn.num_positions
    wrong = sum(point.true != point.predicted for point in drawn.points)
    if shown == there:
        text = f"All {plural(there, 'image')} are shown."
    elif wrong == drawn.num_mistakes:
        text = (
            f"{shown:,} of {there:,} images are shown: all {plural(wrong, 'mistake')}, and an even "
            "selection of the others."
        )
    else:
        text = (
            f"{shown:,} of {there:,} images are shown: an even selection of the "
            f"{drawn.num_mistakes:,} mistakes."
        )
    absent = result.num_images - there
    if absent:
        text += f" {plural(absent, 'image')} without finite numbers are left out."
    return text
