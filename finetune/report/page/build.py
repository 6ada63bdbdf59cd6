"""Values of the page's template: formatted text and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.resolved import PlannedConfig
from finetune.core.text import count, plural
from finetune.report.page.charts import Chart, Column, line_chart, reliability
from finetune.report.page.confusion import MOST_CLASSES, Matrix, matrix_of, shown_classes
from finetune.report.page.embedding_map import EmbeddingMap, lay_out
from finetune.report.page.network_bars import strip
from finetune.report.page.stages import first_epochs, stage_rows
from finetune.results.evaluation import Calibration, ClassScore, EvalResult, Interval
from finetune.results.freeze import FreezeReport
from finetune.results.train import MONITORED

MOST_CLASS_ROWS = 300
_MOST_PAIRS = 10
_WEAK = 0.8


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        photo: Data URL of the photo.
        heat: Data URL of the Grad-CAM overlay for the predicted class; may be None.
    """

    path: str
    true: str
    predicted: str
    probability: float
    photo: str
    heat: str | None = None


@dataclass(frozen=True)
class Facts:
    """Input of a page.

    Attributes:
        monitor: Value of ``train.monitor``.
        records: Records of ``metrics.jsonl``; empty if the checkpoint has no run directory.
        num_mistakes: Number of misclassified images, of which ``mistakes`` shows some.
        verdict: Verdict on the data, in one line.
        rerun: Command that repeats the run.
        stages: Stages of the run; may be empty.
        chosen_on_these: Whether the run chose its best epoch on these images.
        embedding_map: Map of the embeddings; None without ``--map``.
    """

    run: str
    result: EvalResult
    freeze: FreezeReport
    epoch: int
    records: Sequence[Mapping[str, Any]]
    mistakes: Sequence[Picture]
    uncertain: Sequence[Picture]
    num_mistakes: int
    verdict: str
    notes: Sequence[str]
    config: str
    rerun: str
    versions: Mapping[str, str]
    monitor: str = "top1"
    stages: Sequence[PlannedConfig] = ()
    chosen_on_these: bool = True
    embedding_map: EmbeddingMap | None = None


@dataclass(frozen=True)
class Figure:
    """A headline metric.

    Attributes:
        at: Position of the value on an axis of length 200.
        low: Position of the interval's lower bound.
        high: Position of the interval's upper bound.
    """

    name: str
    text: str
    note: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    text_low: str = ""
    text_high: str = ""


def build_page(facts: Facts) -> dict[str, Any]:
    """Build the template's variable ``page``."""
    result = facts.result
    shown = shown_classes(result.per_class, result.confused)
    names: dict[str, int] = {}

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    matrix = matrix_of(result.per_class, result.confused, shown, number)
    rows, rows_text = _classes(result.per_class)
    charts, chart_text = _charts(facts)
    drawn = facts.embedding_map
    return {
        "run": facts.run,
        "headline": _headline(facts),
        "figures": _figures(result),
        "interval_method": result.interval_method,
        "strip": strip(facts.freeze),
        "network_text": _network_text(facts.freeze),
        "stages": stage_rows(facts.stages, facts.records, facts.epoch, monitor=facts.monitor),
        "charts": charts,
        "chart_text": chart_text,
        "classes": rows,
        "classes_text": rows_text,
        "matrix": matrix,
        "matrix_text": _matrix_text(result, matrix),
        "pairs": [
            {
                "true": pair.true,
                "predicted": pair.predicted,
                "count": f"{pair.count:,}",
                "share": f"{pair.share:.1%}",
            }
            for pair in result.confused[:_MOST_PAIRS]
        ],
        "mistakes": [_picture(picture, number) for picture in facts.mistakes],
        "mistakes_text": _mistakes_text(facts),
        "uncertain": [_picture(picture, number) for picture in facts.uncertain],
        "columns": _columns(result.calibration),
        "calibration_text": _calibration_text(result.calibration),
        "data_text": facts.verdict,
        "data_notes": list(facts.notes),
        "rerun": facts.rerun,
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "config": facts.config,
        "map": None if drawn is None else lay_out(drawn, result, number),
        "names": list(names),
    }


def _headline(facts: Facts) -> str:
    result, totals = facts.result, facts.freeze.totals
    return (
        f"{result.model}, {plural(len(result.per_class), 'class')}; "
        f"{count(totals.trainable)} of {count(totals.parameters)} parameters trained; epoch "
        f"{facts.epoch} of the checkpoint {result.checkpoint}; evaluated on "
        f"{plural(result.num_images, 'image')} of {result.data}"
        f"{f', {result.split}' if result.split else ''}"
    )


def _figures(result: EvalResult) -> list[Figure]:
    between, correct = result.intervals, sum(row.num_correct for row in result.per_class)
    figures = [
        _share("Top-1", result.top1, between.get("top1"), f"{correct:,} of {result.num_images:,}"),
        _share("Balanced", result.balanced_accuracy, between.get("balanced_accuracy")),
    ]
    if result.top5 is not None:
        figures.append(_share("Top-5", result.top5, between.get("top5")))
    figures.append(_share("Macro F1", result.macro.f1, between.get("macro_f1")))
    if result.auroc is not None:
        figures.append(_share("AUROC", result.auroc, between.get("auroc")))
    loss = between.get("loss")
    note = "" if loss is None else f"{loss.low:.3f} to {loss.high:.3f}"
    fitted = result.calibration.error_before is not None
    name = "Loss, without temperature" if fitted else "Loss"
    figures.append(Figure(name, f"{result.loss:.4f}", note))
    error = result.calibration.error
    figures.append(_share("Calibration error", error, between.get("calibration_error")))
    return figures


def _share(name: str, value: float, interval: Interval | None, note: str = "") -> Figure:
    if interval is None:
        return Figure(name, f"{value:.2%}", note)
    return Figure(
        name,
        f"{value:.2%}",
        note,
        at=round(200 * value, 1),
        low=round(200 * interval.low, 1),
        high=round(200 * interval.high, 1),
        text_low=f"{interval.low:.1%}",
        text_high=f"{interval.high:.1%}",
    )


def _network_text(freeze: FreezeReport) -> str:
    totals, work = freeze.totals, freeze.operations
    saved = 1 - work.backward / work.backward_if_all_trained
    once = (
        f"{_part(freeze.cut.forward_once)} of forward MACs run once per image"
        f" (up to the split after {freeze.cut.after})"
        if freeze.cut.after
        else "the whole network runs on every image in every epoch"
    )
    patterns = ", ".join(row.pattern for row in freeze.patterns) or "none"
    frozen = _part(totals.frozen / totals.parameters)
    return (
        f"Patterns: {patterns}. {count(totals.frozen)} of {count(totals.parameters)} parameters "
        f"stayed frozen ({frozen}); {once}; the backward pass needs {_part(saved)} fewer MACs than "
        "training everything."
    )


def _part(share: float) -> str:
    """Format a fraction in percent, without rounding it up to 100 %."""
    return "more than 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def _charts(facts: Facts) -> tuple[list[Chart], str]:
    if not facts.records:
        return [], ""
    epochs = [int(record["epoch"]) for record in facts.records]
    val = [record["val"] for record in facts.records]
    starts = first_epochs(facts.records)
    losses = line_chart(
        "Loss: training dashed, validation solid",
        epochs,
        [
            ("training", "train", [record["loss"] for record in facts.records]),
            ("validation", "val", [one["loss"] for one in val]),
        ],
        starts=starts,
    )
    accuracies = line_chart(
        "Validation: top-1 solid, balanced dashed",
        epochs,
        [
            ("balanced", "balanced", [one["balanced_accuracy"] for one in val]),
            ("top-1", "val", [one["top1"] for one in val]),
        ],
        percent=True,
        starts=starts,
    )
    if facts.monitor == "loss":
        best, which = min(val, key=lambda one: one["loss"]), "lowest loss"
    else:
        best = max(val, key=lambda one: (one[facts.monitor], -one["loss"]))
        which = f"highest {MONITORED[facts.monitor]}, then lower loss"
    text = (
        f"The best epoch is {epochs[val.index(best)]} of {len(epochs)}: {which}. It was chosen on "
        + (
            "these validation images, so its metrics are slightly optimistic."
            if facts.chosen_on_these
            else "the run's validation images, not on those of this page."
        )
    )
    if starts:
        text += " Vertical lines mark the starts of stages."
    return [losses, accuracies], text


def _classes(classes: Sequence[ClassScore]) -> tuple[list[dict[str, Any]], str]:
    order = sorted(classes, key=lambda row: (1.0 if row.top1 is None else row.top1, row.name))
    text = ""
    if len(order) > MOST_CLASS_ROWS:
        text = f"The {MOST_CLASS_ROWS} weakest of {len(order):,} classes; metrics.json lists all."
        order = order[:MOST_CLASS_ROWS]
    return [_class_row(row) for row in order], text


def _class_row(row: ClassScore) -> dict[str, Any]:
    interval = row.interval
    return {
        "name": row.name,
        "images": f"{row.num_images:,}",
        "precision": _percent(row.precision),
        "recall": _percent(row.top1),
        "f1": _percent(row.f1),
        "weak": row.top1 is not None and row.top1 < _WEAK,
        "at": None if row.top1 is None else round(200 * row.top1, 1),
        "low": 0 if interval is None else round(200 * interval.low, 1),
        "high": 0 if interval is None else round(200 * interval.high, 1),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _matrix_text(result: EvalResult, matrix: Matrix) -> str:
    if matrix.size == len(result.per_class):
        return ""
    return (
        f"Only the {MOST_CLASSES} of {len(result.per_class):,} classes with the most mistakes are "
        "shown."
    )


def _picture(picture: Picture, number: Any) -> dict[str, Any]:
    return {
        "path": picture.path,
        "true": picture.true,
        "predicted": picture.predicted,
        "true_at": number(picture.true),
        "predicted_at": number(picture.predicted),
        "probability": f"{picture.probability:.1%} sure",
        "photo": picture.photo,
        "heat": picture.heat,
    }


def _mistakes_text(facts: Facts) -> str:
    shown = len(facts.mistakes)
    which = "All" if shown == facts.num_mistakes else f"{shown:,} of"
    heat = any(picture.heat for picture in facts.mistakes)
    heat_note = (
        " The heat map beside each photo shows which regions support the predicted class "
        "(Grad-CAM, Selvaraju et al. 2017)."
    )
    return (
        f"{which} {plural(facts.num_mistakes, 'mistake')}, sorted by descending loss."
        f"{heat_note if heat else ''}"
    )


def _columns(calibration: Calibration) -> tuple[Column, ...]:
    return reliability(calibration.bins)


def _calibration_text(calibration: Calibration) -> str:
    text = f"Expected calibration error {calibration.error:.2%}"
    if calibration.error_before is None:
        return f"{text}. A temperature can be fitted with `finetune eval RUN --calibrate`."
    fitted = ", fitted on these images" if calibration.fitted else ""
    return (
        f"{text} at temperature {calibration.temperature:.3g}{fitted}; without it "
        f"{calibration.error_before:.2%}. The loss with it is {calibration.loss:.4f}."
    )
