"""A network as a row of bars: what is frozen, what trains, and where it is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.report.tables import count
from finetune.results import ParameterRow

MOST_BARS = 40
_ENOUGH_BARS = 8
STEP, TALLEST, SHORTEST = 26, 110, 12
"""Of the drawing, in pixels: from bar to bar, and their heights."""


@dataclass(frozen=True)
class Bar:
    """A module with everything below it; its height is the logarithm of its parameters.

    Attributes:
        state: ``frozen``, ``partly`` or ``trains``.
    """

    name: str
    state: str
    parameters: int
    trainable: int
    head: bool
    height: int
    text: str


@dataclass(frozen=True)
class Strip:
    """The bars, from the image to the classes.

    Attributes:
        cut: Where what runs once for each image ends, in bars from the left: a whole number
            between two of them, a half within one; None where nothing runs once.
    """

    bars: tuple[Bar, ...]
    cut: float | None


def strip_of(parameters: Sequence[ParameterRow], cut_after: str | None) -> Strip:
    """The network at the depth of its module tree where it has enough bars to be a picture."""
    modules = _modules(parameters, 1)
    for depth in range(2, 6):
        deeper = _modules(parameters, depth)
        if len(deeper) > MOST_BARS or (depth > 2 and len(modules) >= _ENOUGH_BARS):
            break
        modules = deeper
    most = max(sum(row.numel for row in rows) for rows in modules.values())
    bars = tuple(_bar(name, rows, most) for name, rows in modules.items())
    return Strip(bars, _cut(bars, cut_after))


def _modules(parameters: Sequence[ParameterRow], depth: int) -> dict[str, list[ParameterRow]]:
    modules: dict[str, list[ParameterRow]] = {}
    for row in parameters:
        path = row.name.split(".")[:-1] or [row.name]
        modules.setdefault(".".join(path[:depth]), []).append(row)
    return modules


def _bar(name: str, rows: Sequence[ParameterRow], most: int) -> Bar:
    trainable = sum(row.numel for row in rows if not row.frozen)
    total = sum(row.numel for row in rows)
    state = "trains" if trainable == total else "partly" if trainable else "frozen"
    head = all(row.head for row in rows)
    said = {
        "frozen": "frozen",
        "trains": "all of them train",
        "partly": f"{count(trainable)} of them train",
    }
    share = math.log1p(total) / math.log1p(most)
    return Bar(
        name=name,
        state=state,
        parameters=total,
        trainable=trainable,
        head=head,
        height=round(SHORTEST + (TALLEST - SHORTEST) * share**2),
        text=f"{name}{', the new head' if head else ''}: {count(total)} parameters, {said[state]}",
    )


def _cut(bars: Sequence[Bar], cut_after: str | None) -> float | None:
    if cut_after is None:
        return None
    inside = [
        at
        for at, bar in enumerate(bars)
        if cut_after == bar.name or cut_after.startswith(f"{bar.name}.")
    ]
    if inside:
        at = inside[-1]
        return at + 1 if bars[at].state == "frozen" else at + 0.5
    # Behind a module without parameters, such as the pooling: behind all that is frozen.
    return float(next((at for at, bar in enumerate(bars) if bar.state != "frozen"), len(bars)))
