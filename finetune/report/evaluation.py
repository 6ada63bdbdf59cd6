"""Text output of ``eval`` and ``compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune.checkpoints.run_dir import EVALUATION
from finetune.core.text import plural
from finetune.report.caveats import caveat_fields, caveats_by_run
from finetune.report.layout import (
    Bar,
    Cell,
    Document,
    Field,
    Fields,
    Paragraph,
    Part,
    Table,
    document,
    labelled,
    styled,
)
from finetune.report.train import accuracy, next_facts
from finetune.results.evaluation import Calibration, ClassScore, Comparison, EvalResult, Interval

_MOST_CLASSES = 40
_MOST_PAIRS = 5


def render_eval(result: EvalResult) -> Document:
    """Render the metrics with intervals, one row per class, the most confused pairs, and the files
    written."""
    return document(
        Fields(_facts(result)),
        _classes(result.per_class),
        _pairs(result) if result.confused else None,
        Fields(_written(result)),
    )


def _facts(result: EvalResult) -> list[Field]:
    unknown = f"; {plural(result.ignored, 'image')} of unknown classes left out"
    between, macro = result.intervals, result.macro
    facts = [
        Field("Accuracy", accuracy(result.top1, between.get("top1"), result.num_images, "images")),
        *caveat_fields(result.caveats),
        Field(
            "Balanced",
            f"{percent(result.balanced_accuracy, between.get('balanced_accuracy'))}, the mean "
            "recall of the classes",
        ),
    ]
    if result.top5 is not None:
        facts.append(Field("Top-5", percent(result.top5, between.get("top5"))))
    facts += [
        Field("Macro F1", percent(macro.f1, between.get("macro_f1"))),
        Field("", f"precision {macro.precision:.2%}, recall {macro.recall:.2%}", detail=True),
        Field("Loss", number(result.loss, between.get("loss")) + _loss_with(result.calibration)),
    ]
    if result.auroc is not None:
        facts.append(Field("AUROC", number(result.auroc, between.get("auroc"))))
    kept = ", from features that an earlier run computed" * result.features_from_earlier_run
    facts += [
        Field("Calibration", _calibration(result.calibration, between.get("calibration_error"))),
        Field(
            "Data",
            f"{result.data}{f', {result.split}' if result.split else ''}"
            f"{unknown if result.ignored else ''}",
        ),
        Field("Checkpoint", f"{result.checkpoint} ({result.model})"),
        Field("Intervals", result.interval_method, detail=True),
        Field("Speed", f"{result.images_per_s:,.0f} images/s{kept}", detail=True),
    ]
    return facts


def _written(result: EvalResult) -> list[Field]:
    facts = labelled("Written", result.files)
    pages = [file for file in result.files if file.endswith(".html")]
    if pages:
        facts.append(Field("Next", f"open {pages[0]} in a browser: it works offline"))
    return [*facts, *next_facts(result.next)]


def percent(share: float, interval: Interval | None) -> str:
    """Format a fraction in percent, with its interval if there is one."""
    if interval is None:
        return f"{share:.2%}"
    return f"{share:.2%} [{interval.low:.1%}, {interval.high:.1%}]"


def number(value: float, interval: Interval | None) -> str:
    """Format a number, with its interval if there is one."""
    if interval is None:
        return f"{value:.4f}"
    return f"{value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _calibration(calibration: Calibration, interval: Interval | None) -> str:
    text = f"error {percent(calibration.error, interval)}"
    if calibration.error_before is None:
        return f"{text}; --calibrate may lower it"
    fitted = ", fitted on these images" * calibration.fitted
    return (
        f"{text} at temperature {calibration.temperature:.3g}{fitted}; "
        f"{calibration.error_before:.2%} without"
    )


def _loss_with(calibration: Calibration) -> str:
    if calibration.error_before is None:
        return ""
    return f" without the temperature; {calibration.loss:.4f} with it"


def _classes(classes: Sequence[ClassScore]) -> list[Part]:
    """Return one row per class; in brief, for many classes only those with the lowest recall."""
    rows: dict[str, tuple[Cell, ...]] = {
        row.name: (
            row.name,
            f"{row.num_images:,}",
            *("-" if x is None else f"{x:.1%}" for x in (row.precision, row.top1, row.f1)),
            Bar(row.top1 or 0.0),
        )
        for row in classes
    }
    header = ("class", "images", "precision", "recall", "F1", "")
    right = (1, 2, 3, 4)
    if len(classes) <= _MOST_CLASSES:
        return [Table(header, [*rows.values()], right=right, names=(0,))]
    weakest = sorted(classes, key=lambda row: (1.0 if row.top1 is None else row.top1, row.name))
    brief = [rows[row.name] for row in weakest[:_MOST_CLASSES]]
    more = (
        f"… and {len(classes) - _MOST_CLASSES:,} more with at least the same recall; "
        f"{EVALUATION} lists all"
    )
    return [
        Table(header, [*rows.values()], right=right, names=(0,), brief=brief),
        Paragraph(styled(more, "dim")),
    ]


def _pairs(result: EvalResult) -> list[Part]:
    rows = [
        (pair.true, pair.predicted, f"{pair.count:,}", f"{pair.share:.1%}")
        for pair in result.confused
    ]
    header = ("most confused", "predicted as", "images", "of the class")
    brief = rows[:_MOST_PAIRS]
    listed = Table(header, rows, right=(2, 3), names=(0, 1), brief=brief)
    more = len(rows) - len(brief)
    if not more:
        return [listed]
    return [listed, Paragraph(styled(f"… and {plural(more, 'more pair')} (--verbose)", "dim"))]


_MEASURES = {
    "top1": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "loss": "loss",
    "calibration_error": "calibration error",
}


def render_comparison(result: Comparison) -> Document:
    """Render the metrics of every run, the config differences and the significance tests.

    Each run is a column.
    """
    best = max(run.top1 for run in result.runs)
    rows: list[list[Cell]] = [["images", *(f"{run.num_images:,}" for run in result.runs)]]
    for key, name in _MEASURES.items():
        cells: list[Cell] = [name]
        ranges: list[Cell] = [""]
        for run in result.runs:
            value, interval = getattr(run, key), run.intervals.get(key)
            figure = f"{value:.4f}" if key == "loss" else f"{value:.2%}"
            is_best = key == "top1" and value == best
            cells.append(styled(figure, "result" if is_best else ""))
            ranges.append(styled(_range(key, interval), "dim"))
        rows += [cells, ranges] if any(map(str, ranges)) else [cells]
    header = ("", *(run.run for run in result.runs))
    plot = [Field("Curves", result.plot)] if result.plot else []
    return document(
        Table(header, rows, right=range(1, len(header)), titles=True),
        caveats_by_run(result),
        _differences(result),
        [Paragraph(f"{test.sentence}.") for test in result.tests] or None,
        Fields([Field("Intervals", result.interval_method, detail=True), *plot]),
    )


def _range(key: str, interval: Interval | None) -> str:
    if interval is None:
        return ""
    if key == "loss":
        return f"[{interval.low:.4f}, {interval.high:.4f}]"
    return f"[{interval.low:.1%}, {interval.high:.1%}]"


def _differences(result: Comparison) -> Part:
    if not result.differing:
        return Paragraph("The configs are the same.")
    rows = [(row.key, *map(_value, row.values)) for row in result.differing]
    header = ("config", *(run.run for run in result.runs))
    return Table(header, rows, names=(0,), titles=True)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
