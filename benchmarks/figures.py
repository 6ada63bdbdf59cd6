"""Medians over a contender's runs, for the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cases import PLAIN

Record = dict[str, Any]
"""Measurements of a case, written by `compare.py`."""


@dataclass(frozen=True)
class Row:
    """Medians of one contender in one case; missing values are None.

    Attributes:
        epoch_s: Training and evaluation time of the epochs after the first, which starts workers
            and warms caches up.
        evaluated_per_s: Validation images per second, in the evaluations of those epochs.
    """

    contender: str
    augmentation: str
    form: str
    best: float
    last: float
    wall_s: float
    epoch_s: float | None
    evaluated_per_s: float | None
    peak_mib: float | None


def rows_of(record: Record, num_val: int) -> list[Row]:
    """Return the contenders of a case: the plain loop first, the others sorted by time."""
    names = dict.fromkeys(run["contender"] for run in record.get("runs", ()))
    rows = [_row(name, record["runs"], num_val) for name in names]
    return sorted(rows, key=lambda row: (row.contender != PLAIN, row.wall_s))


def row_of(record: Record | None, contender: str, num_val: int) -> Row | None:
    """Return the row of one contender; None if it was not measured."""
    rows = rows_of(record, num_val) if record else []
    return next((row for row in rows if row.contender == contender), None)


def _row(contender: str, all_runs: Sequence[Record], num_val: int) -> Row:
    runs = [run for run in all_runs if run["contender"] == contender]
    eval_s = _after_first(runs, lambda epoch: epoch["eval_s"])
    accuracies = [[epoch["top1"] for epoch in run["epochs"]] for run in runs]
    peaks = [run["took"]["peak_anonymous_mib"] for run in runs]
    return Row(
        contender,
        runs[0]["augmentation"],
        runs[0]["form"],
        median(max(epochs) for epochs in accuracies),
        median(epochs[-1] for epochs in accuracies),
        median(run["took"]["wall_s"] for run in runs),
        _after_first(runs, lambda epoch: epoch["train_s"] + epoch["eval_s"]),
        num_val / eval_s if eval_s else None,
        median(peaks) if all(peaks) else None,
    )


def _after_first(
    runs: Sequence[Record], seconds: Callable[[dict[str, float]], float]
) -> float | None:
    """Return the median over runs of the median over the epochs after the first."""
    each = [[seconds(epoch) for epoch in run["epochs"][1:]] for run in runs]
    return median(map(median, each)) if all(each) else None


def ratio(reference: float | None, value: float | None) -> float | None:
    """Return the reference divided by the value; None if either is missing or zero."""
    return reference / value if reference and value else None


def beyond_imports_s(record: Record | None, warm: str, num_val: int) -> float | None:
    """Return the time of a run minus that of importing torch and torchvision."""
    row = row_of(record, warm, num_val)
    imports = record.get("imports_s") if record else None
    return row.wall_s - median(imports) if row and imports else None
