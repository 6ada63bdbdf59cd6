"""Text output of ``train`` with ``recipe: auto``."""

from __future__ import annotations

from finetune.report.caveats import caveat_fields
from finetune.report.layout import Cell, Document, Field, Fields, Table, document, styled
from finetune.report.train import accuracy, run_facts, saved_facts
from finetune.results.evaluation import Interval
from finetune.results.train import MONITORED, LadderSummary, Rung

_WHAT = {
    "linear_probe": "the new head",
    "last_part": "the head, then the last quarter",
    "everything": "the head, then everything",
}


def render_ladder(summary: LadderSummary) -> Document:
    """Render the accuracy, what was reached after which time, what twice the budget may reach, and
    the run."""
    rows = [_row(rung, summary.chosen) for rung in summary.rungs]
    header = ("", "trained", "epochs", "after", "val top-1", "95 % interval")
    return document(
        Fields(_figures(summary)),
        Table(header, rows, right=(2, 3, 4)),
        Fields([*_facts(summary), *run_facts(summary.train), *saved_facts(summary.train)]),
    )


def _figures(summary: LadderSummary) -> list[Field]:
    rung = next(one for one in summary.rungs if one.number == summary.chosen)
    interval = Interval(rung.low, rung.high)
    return [
        Field("Accuracy", accuracy(rung.val.top1, interval, summary.num_val, "val images")),
        *caveat_fields(summary.train.caveats),
    ]


def _row(rung: Rung, chosen: int) -> tuple[Cell, ...]:
    is_chosen = rung.number == chosen
    cells = (
        f"{rung.number}{' *' if is_chosen else ''}",
        _WHAT[rung.what],
        str(rung.epochs),
        seconds(rung.ended_s),
        f"{rung.val.top1:.1%}",
        f"{100 * rung.low:.1f} to {100 * rung.high:.1f}",
    )
    return tuple(styled(cell, "good") for cell in cells) if is_chosen else cells


def _facts(summary: LadderSummary) -> list[Field]:
    facts = [
        Field("Kept", f"rung {summary.chosen} (*), the best by val {MONITORED[summary.monitor]}"),
        Field(
            "Budget",
            f"{seconds(summary.budget_s)}, {seconds(summary.elapsed_s)} used: {summary.note}",
        ),
    ]
    if summary.doubled is not None:
        facts.append(
            Field(
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
