"""Bar drawing of a network: frozen and trainable modules, and the split point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.core.text import count
from finetune.report.page.text_width import text_width
from finetune.results.freeze import FreezeReport, ParameterRow

MOST_BARS = 40
_ENOUGH_BARS = 8
STEP, TALLEST, SHORTEST = 26, 110, 12
"""Distance between bars, and heights of the tallest and shortest bar, in pixels."""


@dataclass(frozen=True)
class Bar:
    """A module with its submodules; the height grows with the log of its parameter count.

    Attributes:
        state: One of ``frozen``, ``partly`` and ``trained``.
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
    """Bars of a network, from input to output.

    Attributes:
        cut: Split point, in bars from the left: an integer between two bars, a half within a bar;
            None if there is no frozen prefix.
    """

    bars: tuple[Bar, ...]
    cut: float | None


def strip_of(parameters: Sequence[ParameterRow], cut_after: str | None) -> Strip:
    """Build the bars at a depth of the module tree that gives a readable number of them."""
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
    state = "trained" if trainable == total else "partly" if trainable else "frozen"
    head = all(row.head for row in rows)
    said = {
        "frozen": "frozen",
        "trained": "all of them trained",
        "partly": f"{count(trainable)} of them trained",
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
    # After a module without parameters, such as pooling: after all frozen bars.
    return float(next((at for at, bar in enumerate(bars) if bar.state != "frozen"), len(bars)))


_SAID = "computed once per image, up to the split"


def strip(freeze: FreezeReport) -> dict[str, Any]:
    """Build the template's variable ``page.strip``, with room for all labels."""
    drawn = strip_of(freeze.parameters, freeze.cut.after)
    longest = max(text_width(bar.name) for bar in drawn.bars)
    base = TALLEST + 22
    # The names below the bars are slanted by 50 degrees.
    width = 8 + STEP * len(drawn.bars) + round(0.65 * longest) + 8
    cut, said = None, None
    if drawn.cut is not None:
        cut = round(8 + STEP * drawn.cut - 2, 1)
        room = 6 + text_width(_SAID)
        # The label is left of the split point if it fits, otherwise right of it.
        said = {
            "text": _SAID,
            "x": cut - 6 if cut > room else cut + 6,
            "anchor": "end" if cut > room else "start",
        }
        width = width if cut > room else max(width, round(cut + room))
    return {
        "bars": drawn.bars,
        "step": STEP,
        "base": base,
        "width": width,
        "total": base + round(0.77 * longest) + 22,
        "cut": cut,
        "said": said,
    }
