"""Table of the optimizer's parameter groups."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.core.text import count
from finetune.report.layout import Table
from finetune.results.freeze import GroupRow

_MOST = 12
_FIRST, _LAST = 7, 3


def render_groups(groups: Sequence[GroupRow]) -> Table:
    """Return one row per group, the head's first; long tables in brief omit the middle."""
    rows = [
        (
            f"{group.lr:.3g}",
            f"{group.weight_decay:g}",
            f"{group.tensors:,}",
            count(group.parameters),
            _names(group.names),
        )
        for group in groups
    ]
    brief = rows
    if len(rows) > _MOST:
        left_out = len(rows) - _FIRST - _LAST
        middle = ("…", "", "", "", f"{left_out} more with --verbose")
        brief = [*rows[:_FIRST], middle, *rows[-_LAST:]]
    header = ("learning rate", "weight decay", "tensors", "parameters", "trained parameters")
    return Table(header, rows, right=(0, 1, 2, 3), names=(4,), brief=brief)


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
