"""Bars of a network: frozen and trainable modules, and the split point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.core.text import count
from finetune.results.freeze import FreezeReport, ParameterRow

MOST_BARS = 40
_ENOUGH_BARS = 8


@dataclass(frozen=True)
class Bar:
    """A module with its submodules.

    Attributes:
        state: One of ``frozen``, ``partly`` and ``trained``.
    """

    name: str
    state: str
    parameters: int
    trainable: int
    head: bool


@dataclass(frozen=True)
class Strip:
    """Bars of a network, from input to output.

    Attributes:
        cut: Split point, in bars from the first: an integer between two bars, a half within a bar;
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
    bars = tuple(_bar(name, rows) for name, rows in modules.items())
    return Strip(bars, _cut(bars, cut_after))


def _modules(parameters: Sequence[ParameterRow], depth: int) -> dict[str, list[ParameterRow]]:
    modules: dict[str, list[ParameterRow]] = {}
    for row in parameters:
        path = row.name.split(".")[:-1] or [row.name]
        modules.setdefault(".".join(path[:depth]), []).append(row)
    return modules


def _bar(name: str, rows: Sequence[ParameterRow]) -> Bar:
    trainable = sum(row.numel for row in rows if not row.frozen)
    total = sum(row.numel for row in rows)
    state = "trained" if trainable == total else "partly" if trainable else "frozen"
    return Bar(name, state, total, trainable, head=all(row.head for row in rows))


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


def strip(freeze: FreezeReport) -> dict[str, Any]:
    """Build the template's variable ``page.strip``: bars on a logarithmic axis from 1."""
    drawn = strip_of(freeze.parameters, freeze.cut.after)
    powers = math.ceil(math.log10(max(10, *(bar.parameters for bar in drawn.bars))))
    return {
        "bars": [
            {
                "name": bar.name,
                "head": bar.head,
                "state": bar.state,
                "parameters": bar.parameters,
                "count": count(bar.parameters),
                "trained": {"frozen": "none", "trained": "all"}.get(
                    bar.state, count(bar.trainable)
                ),
                "width": round(100 * math.log10(bar.parameters) / powers, 2),
            }
            for bar in drawn.bars
        ],
        "ticks": [(round(100 * at / powers, 2), count(10**at)) for at in range(powers + 1)],
        "cut": drawn.cut,
    }
