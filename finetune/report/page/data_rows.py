"""Rows of the tables on data that the page of a run and the page of ``check-data`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.results.check import ClassRow, Finding

_MOST_EXAMPLES = 3
_SPLITS = {"train": "training", "val": "validation", "test": "test", "all": "images"}


@dataclass(frozen=True)
class DataFacts:
    """Data of a run.

    Attributes:
        text: Verdict on the data, in one line.
        splits: Names of the splits, in the order of the counts of ``classes``.
        findings: Findings of ``check-data``; None if it has not inspected all of the images.
        command: Command that inspects the data and shows what it finds.
    """

    text: str
    splits: Sequence[str] = ()
    classes: Sequence[ClassRow] = ()
    findings: Sequence[Finding] | None = None
    notes: Sequence[str] = ()
    command: str = ""


def counts_table(
    splits: Sequence[str], classes: Sequence[ClassRow], number: Callable[[str], int]
) -> dict[str, Any]:
    """Build the template's table of classes with their number of images in each split."""
    most = max((row.num_images for row in classes), default=0) or 1
    return {
        "splits": [_SPLITS.get(name, name) for name in splits],
        "rows": [
            {
                "name": row.name,
                "at": number(row.name),
                "counts": row.counts,
                "images": row.num_images,
                "width": round(100 * row.num_images / most, 2),
            }
            for row in classes
        ],
    }


def finding_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Build the template's list of findings, with a few examples of each."""
    return [
        {
            "level": finding.level,
            "title": finding.title,
            "text": f"{finding.why} {finding.todo}".strip(),
            "examples": finding.examples[:_MOST_EXAMPLES],
            "more": max(0, finding.count - _MOST_EXAMPLES) if finding.examples else 0,
        }
        for finding in findings
    ]
