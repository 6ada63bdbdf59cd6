"""Text output of ``eval`` and ``compare``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.checkpoints.run_dir import REPORT, run_of
from finetune.core.text import plural
from finetune.report.tables import table
from finetune.results.evaluation import Calibration, ClassScore, Comparison, EvalResult, Interval

_BAR = 20
_MOST_CLASSES = 40
_MOST_PAIRS = 5


def render_eval(result: EvalResult) -> str:
    """Render the metrics with intervals, one line per class, and the most confused pairs."""
    parts = [table(("", ""), _facts(result)), _classes(result.per_class)]
    if result.confused:
        parts.append(_pairs(result))
    return "\n\n".join(parts)


def _facts(result: EvalResult) -> list[tuple[str, str]]:
    kept = ", from features that an earlier run computed" * result.features_from_earlier_run
    correct = round(result.top1 * result.num_images)
    unknown = f"; {plural(result.ignored, 'image')} of unknown classes left out"
    between = result.intervals
    facts = [
        ("Checkpoint", f"{result.checkpoint} ({result.model})"),
        (
            "Data",
            f"{result.data}{f', {result.split}' if result.split else ''}"
            f"{unknown if result.ignored else ''}",
        ),
        (
            "Top-1",
            f"{percent(result.top1, between.get('top1'))} ({correct:,} of {result.num_images:,})",
        ),
        (
            "Balanced",
            f"{percent(result.balanced_accuracy, between.get('balanced_accuracy'))}, mean "
            "per-class recall",
        ),
    ]
    if result.top5 is not None:
        facts.append(("Top-5", percent(result.top5, between.get("top5"))))
    macro = result.macro
    facts += [
        (
            "Macro",
            f"F1 {percent(macro.f1, between.get('macro_f1'))}, precision {macro.precision:.2%}, "
            f"recall {macro.recall:.2%}",
        ),
        ("Loss", number(result.loss, between.get("loss")) + _loss_with(result.calibration)),
    ]
    if result.auroc is not None:
        facts.append(("AUROC", number(result.auroc, between.get("auroc"))))
    facts += [
        ("Calibration", _calibration(result.calibration, between.get("calibration_error"))),
        ("Intervals", result.interval_method),
        ("Speed", f"{result.images_per_s:,.0f} images/s{kept}"),
    ]
    facts += [("Written" if at == 0 else "", file) for at, file in enumerate(result.files)]
    if not any(file.endswith(REPORT) for file in result.files):
        run = shlex.quote(run_of(Path(result.checkpoint)))
        facts.append(("Next", f"finetune report {run} writes an HTML report"))
    return facts


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


def _classes(classes: Sequence[ClassScore]) -> str:
    """Render one line per class; for many classes only those with the lowest recall."""
    shown = list(classes)
    below = ""
    if len(shown) > _MOST_CLASSES:
        weakest = sorted(shown, key=lambda row: (1.0 if row.top1 is None else row.top1, row.name))
        shown = weakest[:_MOST_CLASSES]
        below = (
            f"\n  … and {len(classes) - len(shown):,} more with at least the same recall; "
            "metrics.json lists all"
        )
    rows = [
        (
            row.name,
            f"{row.num_images:,}",
            *("-" if x is None else f"{x:.1%}" for x in (row.precision, row.top1, row.f1)),
            "" if row.top1 is None else "█" * round(_BAR * row.top1),
        )
        for row in shown
    ]
    header = ("class", "images", "precision", "recall", "F1", "")
    return table(header, rows, right=(1, 2, 3, 4)) + below


def _pairs(result: EvalResult) -> str:
    rows = [
        (f"{pair.true} predicted as {pair.predicted}", f"{pair.count:,}", f"{pair.share:.1%}")
        for pair in result.confused[:_MOST_PAIRS]
    ]
    listed = table(("most confused", "images", "of the class"), rows, right=(1, 2))
    more = len(result.confused) - len(rows)
    return f"{listed}\n  … and {plural(more, 'pair')} more" if more else listed


def render_comparison(result: Comparison) -> str:
    """Render the metrics of every run, the config differences and the significance tests."""
    figures = table(
        ("run", "images", "top-1", "balanced", "macro F1", "loss", "calibration error"),
        [
            (
                run.run,
                f"{run.num_images:,}",
                percent(run.top1, run.intervals.get("top1")),
                percent(run.balanced_accuracy, run.intervals.get("balanced_accuracy")),
                percent(run.macro_f1, run.intervals.get("macro_f1")),
                number(run.loss, run.intervals.get("loss")),
                percent(run.calibration_error, run.intervals.get("calibration_error")),
            )
            for run in result.runs
        ],
        right=(1,),
    )
    parts = [figures, _differences(result), "\n".join(f"  {t.sentence}." for t in result.tests)]
    parts.append(f"  Intervals: {result.interval_method}")
    if result.plot:
        parts[-1] += f"\n  Learning curves: {result.plot}"
    return "\n\n".join(parts)


def _differences(result: Comparison) -> str:
    if not result.differing:
        return "  The configs are the same."
    rows = [(row.key, *map(_value, row.values)) for row in result.differing]
    return table(("config", *(run.run for run in result.runs)), rows)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
