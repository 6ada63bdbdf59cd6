"""Charts in SVG coordinates, drawn by the page's template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.core.text import plural
from finetune.results.evaluation import Bin
from finetune.results.learning_curve import LearningCurve

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 10, 26
_HALF = 3.5
"""Half of the width of a character of a tick."""


@dataclass(frozen=True)
class Line:
    """A polyline: its CSS class and its points in SVG syntax."""

    name: str
    kind: str
    points: str


@dataclass(frozen=True)
class Dot:
    """A data point with its tooltip."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A line chart; ``marks`` are the x positions of vertical lines."""

    title: str
    lines: tuple[Line, ...]
    dots: tuple[Dot, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Column:
    """One bin of a reliability diagram."""

    x: float
    y: float
    width: float
    height: float
    weight: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A horizontal axis whose positions are percentages of the width of the drawing."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], *, most: float = math.inf) -> Scale:
        """Return the scale between round values that spans ``values``, and ends at ``most``."""
        ticks = nice_ticks(min(values), max(values))
        return cls(ticks[0], min(ticks[-1], most))

    def at(self, value: float) -> float:
        """Return the position of a value in percent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


Series = tuple[str, str, Sequence[float]]
"""Name, CSS class and values per epoch."""


def line_chart(
    title: str,
    epochs: Sequence[int],
    series: Sequence[Series],
    *,
    percent: bool = False,
    starts: Sequence[int] = (),
) -> Chart:
    """Build a line chart of values per epoch, with a mark before each epoch of ``starts``."""
    values = [value for _, _, line in series for value in line]
    ticks = nice_ticks(min(values), max(values))
    low, high = min(*ticks, *values), max(*ticks, *values)

    def x(epoch: float) -> float:
        span = max(epochs[-1] - epochs[0], 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - epochs[0]) / span

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.3g}"

    return Chart(
        title=title,
        lines=tuple(
            Line(
                name,
                kind,
                " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in zip(epochs, line, strict=True)),
            )
            for name, kind, line in series
        ),
        dots=tuple(
            Dot(round(x(e), 1), round(y(v), 1), kind, f"epoch {e}: {name} {text(v)}")
            for name, kind, line in series
            for e, v in zip(epochs, line, strict=True)
        ),
        x_ticks=tuple((round(x(e), 1), str(e)) for e in _few(sorted({*epochs}), most=8)),
        y_ticks=tuple((round(y(tick), 1), text(tick)) for tick in ticks),
        marks=tuple(round(x(start - 0.5), 1) for start in starts),
    )


def curve_chart(curve: LearningCurve) -> Chart:
    """Build the chart of a learning curve, with its projection, on a logarithmic axis."""
    sizes = [point.num_photos for point in curve.points]
    measured = [point.top1 for point in curve.points]
    both = [*sizes, curve.projected.num_photos]
    law = [1 - curve.law.error_at(size) for size in both]
    places = {round(1000 * math.log(size)): size for size in both}
    known = [round(1000 * math.log(size)) for size in sizes]
    chart = line_chart(
        "Validation accuracy by the number of training photos: measured solid, law dashed",
        [*places],
        [("law", "train", law), ("measured", "val", [*measured, law[-1]])],
        percent=True,
    )

    def x(place: int) -> float:
        span = max(places) - min(places)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (place - min(places)) / span, 1)

    end = max(known)
    measured_line = chart.lines[1]
    shown = measured_line.points.split(" ")[: len(known)]
    dots = [
        replace(dot, text=f"{size:,} photos: {share:.1%}, measured")
        for dot, size, share in zip(chart.dots[len(both) :], sizes, measured, strict=False)
    ]
    last = chart.dots[len(both) - 1]
    twice = replace(last, text=f"{both[-1]:,} photos: {law[-1]:.1%}, projected")
    return replace(
        chart,
        lines=(chart.lines[0], replace(measured_line, points=" ".join(shown))),
        dots=(*dots, twice),
        x_ticks=tuple(
            (min(x(place), WIDTH - _HALF * len(text)), text)  # inside the drawing
            for place in _few(sorted(places), most=5)
            for text in [f"{places[place]:,}"]
        ),
        marks=(x(end),),
    )


def reliability(bins: Sequence[Bin]) -> tuple[Column, ...]:
    """Build a reliability diagram, accuracy by probability, in a square of side 200."""
    most = max((one.count for one in bins), default=0)
    columns = []
    for one in bins:
        if one.accuracy is None or one.probability is None:
            continue
        columns.append(
            Column(
                x=round(200 * one.low, 1),
                y=round(200 * (1 - one.accuracy), 1),
                width=round(200 * (one.high - one.low) - 1, 1),
                height=round(200 * one.accuracy, 1),
                weight=round(0.25 + 0.75 * one.count / most, 2),
                text=f"{plural(one.count, 'image')}, mean probability {one.probability:.1%}: "
                f"{one.accuracy:.1%} right",
            )
        )
    return tuple(columns)


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round tick values that span the range."""
    if not high > low:
        high = low + max(abs(low) * 0.1, 0.01)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.floor(low / step)
    return [round(step * n, 12) for n in range(first, math.ceil(high / step) + 1)]


def _few(values: Sequence[int], *, most: int) -> list[int]:
    """Return at most ``most`` evenly spaced values, including the first and the last."""
    if len(values) <= most:
        return list(values)
    return sorted({values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)})
