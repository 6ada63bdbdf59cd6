"""Markdown tables of the measurements, with ratios to the plain loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from cases import PLAIN, WARM
from figures import Record, Row, beyond_imports_s, ratio, row_of, rows_of

NOTHING = "-"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def case_table(record: Record, num_val: int) -> str:
    """Return the table of a case: contenders, accuracy, times and memory."""
    rows = rows_of(record, num_val)
    reference = next((row for row in rows if row.contender == PLAIN), None)
    return markdown(
        [
            "",
            "augmentation",
            "best",
            "last",
            "whole process",
            "epoch after the first",
            "evaluation speed",
            "peak anonymous memory",
        ],
        [_cells(row, reference) for row in rows],
    )


def _cells(row: Row, reference: Row | None) -> list[str]:
    plain = reference or row
    per_s = _with_ratio(row.evaluated_per_s, "images/s", row.evaluated_per_s, plain.evaluated_per_s)
    return [
        f"{row.contender} ({row.form})" if row.form else row.contender,
        row.augmentation,
        f"{row.best:.1%}",
        f"{row.last:.1%}",
        _with_ratio(row.wall_s, "s", plain.wall_s, row.wall_s),
        _with_ratio(row.epoch_s, "s", plain.epoch_s, row.epoch_s),
        per_s,
        _with_ratio(row.peak_mib, "MiB", plain.peak_mib, row.peak_mib),
    ]


def _with_ratio(value: float | None, unit: str, above: float | None, below: float | None) -> str:
    found = ratio(above, below)
    if value is None:
        return NOTHING
    return f"{number(value)} {unit}" + (f", ratio {number(found)}" if found else "")


def number(value: float) -> str:
    """Format a number with about three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def evaluation_table(record: Record, num_val: int) -> str:
    """Return a table that compares evaluations of `finetune` with those of the plain loop."""
    evaluations = record.get("evaluations") or []
    plain = row_of(record, PLAIN, num_val)
    reference = plain.evaluated_per_s if plain else None
    rows = []
    if plain and reference:
        rows.append([f"{PLAIN}, evaluation of an epoch", _per_s(reference, reference), NOTHING])
    for name in dict.fromkeys(run["contender"] for run in evaluations):
        runs = [run for run in evaluations if run["contender"] == name]
        speed = median(run["images_per_s"] for run in runs)
        walls = [run["took"]["wall_s"] for run in runs if run["took"]]
        whole = f"{number(median(walls))} s" if walls else NOTHING
        rows.append([name, _per_s(speed, reference), whole])
    return markdown(["", "evaluation", "whole process"], rows)


def _per_s(value: float, reference: float | None) -> str:
    return _with_ratio(value, "images/s", value, reference)


def start_up_table(record: Record, num_val: int) -> str:
    """Return the table of a run whose features are already cached."""
    warm = row_of(record, WARM, num_val)
    beyond = beyond_imports_s(record, WARM, num_val)
    if warm is None or beyond is None:
        return NOTHING
    return markdown(
        ["", "median"],
        [
            ["`import torch, torchvision` in a new process", _seconds(warm.wall_s - beyond)],
            [f"{WARM}, {record['epochs']} epochs", _seconds(warm.wall_s)],
            ["the run minus the imports", _seconds(beyond)],
        ],
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def scale_table(record: Record) -> str:
    """Return the table of time and memory by number of images."""
    rows = []
    before: Record | None = None
    first = record["runs"][0]
    for run in record["runs"]:
        images, wall_s = run["num_images"], run["took"]["wall_s"]
        peak = run["took"]["peak_anonymous_mib"]
        more = NOTHING
        if before:
            seconds = wall_s - before["took"]["wall_s"]
            more = f"{number(1000 * seconds / (images - before['num_images']))} ms"
        rows.append(
            [
                f"{images:,}",
                f"{number(wall_s)} s",
                f"{number(1000 * wall_s / images)} ms",
                more,
                _with_ratio(peak, "MiB", peak, first["took"]["peak_anonymous_mib"]),
            ]
        )
        before = run
    return markdown(
        ["images", "whole process", "per image", "per further image", "peak anonymous memory"],
        rows,
    )
