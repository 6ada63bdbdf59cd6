"""Text output of ``freeze-report --probe``."""

from __future__ import annotations

import json

from finetune.core.text import count
from finetune.report.layout import Bar, Document, Fields, Table, document
from finetune.results.freeze import DepthReport, DepthRow

_LEAST_BAR = 1 / 16


def render_depths(report: DepthReport) -> Document:
    """Render the accuracy of the probe of each block, and where the frozen part may end."""
    low = min(row.top1 for row in report.rows)
    high = max(row.top1 for row in report.rows)
    rows = [
        (
            f"{row.block}{' *' if row.block == report.earliest else ''}",
            count(row.parameters),
            f"{row.work:.0%}",
            f"{row.top1:.1%}",
            f"{100 * row.low:.1f} to {100 * row.high:.1f}",
            Bar(max((row.top1 - low) / ((high - low) or 1), _LEAST_BAR)),
        )
        for row in report.rows
    ]
    header = ("linear probe after", "params", "work", "top-1", "95 % interval", "")
    return document(Table(header, rows, right=(1, 2, 3), names=(0,)), Fields(_facts(report)))


def _facts(report: DepthReport) -> list[tuple[str, str]]:
    best = _row(report, report.best)
    facts = [
        ("Fitted on", _some(report.num_train, report.of_train, "training images")),
        ("Judged on", _some(report.num_val, report.of_val, "validation images")),
        ("Best", f"{best.block}: {best.top1:.1%}"),
    ]
    if report.earliest != report.best:
        first = _row(report, report.earliest)
        facts.append(("Earliest", f"{first.block} (*): within one standard error of the best"))
    last = report.rows[-1].block
    if report.earliest == last:
        facts.append(
            (
                "Freeze",
                "all blocks: the last one is the best; training it as well may gain more",
            )
        )
    else:
        facts.append(("Freeze", "up to the block with *, later blocks add nothing measurable:"))
        facts.append(("", f"freeze: {{patterns: {json.dumps(list(report.patterns))}}}"))
    if report.picture:
        facts.append(("Picture", report.picture))
    return facts


def _row(report: DepthReport, block: str) -> DepthRow:
    return next(row for row in report.rows if row.block == block)


def _some(number: int, of: int, what: str) -> str:
    return f"{number:,} {what}" if number == of else f"{number:,} of {of:,} {what}"
