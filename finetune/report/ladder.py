"""Text output of ``train`` with ``recipe: auto``."""

from __future__ import annotations

from finetune.core.text import plural
from finetune.report.tables import table
from finetune.report.train import render_run
from finetune.results.train import MONITORED, LadderSummary, Rung

_WHAT = {
    "linear_probe": "the new head",
    "last_part": "the head, then the last quarter",
    "everything": "the head, then everything",
}


def render_ladder(summary: LadderSummary) -> str:
    """Render what was reached after which time, what twice the budget may reach, and the run."""
    rows = [_row(rung, summary.chosen) for rung in summary.rungs]
    header = ("", "trained", "epochs", "after", "val top-1", "95 % interval")
    return "\n\n".join(
        (
            table(header, rows, right=(2, 3, 4)),
            table(("", ""), [*_facts(summary), *render_run(summary.train)]),
        )
    )


def _row(rung: Rung, chosen: int) -> tuple[str, ...]:
    return (
        f"{rung.number}{' *' if rung.number == chosen else ''}",
        _WHAT[rung.what],
        str(rung.epochs),
        seconds(rung.ended_s),
        f"{rung.val.top1:.1%}",
        f"{100 * rung.low:.1f} to {100 * rung.high:.1f}",
    )


def _facts(summary: LadderSummary) -> list[tuple[str, str]]:
    facts = [
        ("Kept", f"rung {summary.chosen} (*), the best by val {MONITORED[summary.monitor]}"),
        ("Budget", f"{seconds(summary.budget_s)}, {seconds(summary.elapsed_s)} used:"),
        ("", summary.note),
    ]
    runs = len(summary.rungs)
    if runs > 1:
        facts.append(
            ("", f"val images chose among {plural(runs, 'run')}: expect slightly less on new ones")
        )
    if summary.doubled is not None:
        facts.append(
            (
                "Double",
                f"{seconds(summary.doubled.budget_s)} would reach at most about "
                f"{summary.doubled.top1:.1%}: if the error keeps falling as it did",
            )
        )
    return facts


def seconds(number: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if number < 100:
        return f"{number:.0f} s"
    if number < 6000:
        return f"{number / 60:.1f} min"
    return f"{number / 3600:.1f} h"
