"""Values of the page's template: formatted text and numbers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.resolved import PlannedConfig
from finetune.core.text import count, plural
from finetune.report.learning_curve import projection_in_words
from finetune.report.page.charts import Chart, Scale, curve_chart, line_chart, reliability
from finetune.report.page.confusion import IN_ORDER, Matrix, matrix_of, shown_classes
from finetune.report.page.data_rows import DataFacts, counts_table, finding_rows
from finetune.report.page.embedding_map import EmbeddingMap, lay_out
from finetune.report.page.network_bars import strip
from finetune.report.page.stages import first_epochs, stage_rows
from finetune.results.evaluation import Calibration, ClassScore, EvalResult, Interval
from finetune.results.freeze import FreezeReport
from finetune.results.learning_curve import LearningCurve
from finetune.results.train import MONITORED

_MOST_PAIRS = 100

Number = Callable[[str], int]
"""Function from a name to its index in the page's list of names."""


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        probability: Probability of ``predicted``.
        top: Most probable classes and their probabilities, in descending order.
        photo: Data URL of the photo.
        size: Width and height of the original photo in pixels.
        seen: Part of the photo that the network saw: left, top, width and height as fractions.
        heat: Data URL of the Grad-CAM overlay of this part for the predicted class; may be None.
    """

    path: str
    true: str
    predicted: str
    probability: float
    photo: str
    size: tuple[int, int]
    seen: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    top: Sequence[tuple[str, float]] = ()
    heat: str | None = None


@dataclass(frozen=True)
class Listed:
    """An image in the page's list: a mistake, or one of the least certain predictions."""

    path: str
    true: str
    predicted: str
    probability: float
    uncertain: bool


@dataclass(frozen=True)
class Facts:
    """Input of a page.

    Attributes:
        monitor: Value of ``train.monitor``.
        records: Records of ``metrics.jsonl``; empty if the checkpoint has no run directory.
        listed: Images of the list that can be filtered and saved: all pictures, and more mistakes.
        num_mistakes: Number of misclassified images, of which ``mistakes`` shows some.
        written: Date of the page.
        rerun: Command that repeats the run.
        stages: Stages of the run; may be empty.
        chosen_on_these: Whether the run chose its best epoch on these images.
        embedding_map: Map of the embeddings; None without ``--map``.
        curve: Learning curve of the data, if ``learning-curve`` has measured it.
        suspects: File name of the page of ``suspects`` beside this one; empty if there is none.
    """

    run: str
    result: EvalResult
    freeze: FreezeReport
    epoch: int
    records: Sequence[Mapping[str, Any]]
    mistakes: Sequence[Picture]
    uncertain: Sequence[Picture]
    listed: Sequence[Listed]
    num_mistakes: int
    data: DataFacts
    config: str
    rerun: str
    versions: Mapping[str, str]
    written: str
    monitor: str = "top1"
    stages: Sequence[PlannedConfig] = ()
    chosen_on_these: bool = True
    embedding_map: EmbeddingMap | None = None
    curve: LearningCurve | None = None
    suspects: str = ""


@dataclass(frozen=True)
class Figure:
    """A headline metric.

    Attributes:
        at: Position of the value, in percent of the scale.
        low: Position of the interval's lower bound.
        width: Width of the interval.
        between: Interval as text.
        ends: Values at the two ends of the scale.
    """

    name: str
    text: str
    note: str = ""
    at: float | None = None
    low: float = 0.0
    width: float = 0.0
    between: str = ""
    ends: tuple[str, str] = ("", "")


def build_page(facts: Facts) -> dict[str, Any]:
    """Build the template's variable ``page``."""
    result = facts.result
    shown = shown_classes(result.per_class, result.confused)
    names: dict[str, int] = {}

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    matrix = matrix_of(result.per_class, result.confused, shown, number)
    charts, chart_text = _charts(facts)
    drawn = facts.embedding_map
    places = {image.path: at for at, image in enumerate(facts.listed)}
    data = facts.data
    return {
        "title": facts.run,
        "contents": _contents(facts),
        "run": facts.run,
        "headline": _headline(facts),
        "written": facts.written,
        # An evaluation has this field as soon as it looks for such facts.
        "caveats": [caveat.text for caveat in result.caveats],
        "figures": _figures(result),
        "interval_method": result.interval_method,
        "strip": strip(facts.freeze),
        "network_text": _network_text(facts.freeze),
        "stages": stage_rows(facts.stages, facts.records, facts.epoch, monitor=facts.monitor),
        "charts": charts,
        "chart_text": chart_text,
        "classes": _classes(result.per_class, number),
        "matrix": matrix,
        "matrix_text": _matrix_text(result, matrix),
        "pairs": [
            {
                "true": pair.true,
                "predicted": pair.predicted,
                "true_at": number(pair.true),
                "predicted_at": number(pair.predicted),
                "count": pair.count,
                "share": pair.share,
            }
            for pair in result.confused[:_MOST_PAIRS]
        ],
        "mistakes": [_picture(picture, number, places) for picture in facts.mistakes],
        "mistakes_text": _mistakes_text(facts),
        "uncertain": [_picture(picture, number, places) for picture in facts.uncertain],
        "listed": [_listed(image, number) for image in facts.listed],
        "listed_text": _listed_text(facts),
        "columns": reliability(result.calibration.bins),
        "calibration_text": _calibration_text(result.calibration),
        "calibrate": f"finetune eval {shlex.quote(facts.run)} --calibrate"
        if result.calibration.error_before is None
        else "",
        "data": {
            "text": data.text,
            "notes": data.notes,
            "command": data.command,
            "counts": counts_table(data.splits, data.classes, number),
            "findings": None if data.findings is None else finding_rows(data.findings),
            "suspects": facts.suspects,
        },
        "curve": None if facts.curve is None else _curve(facts.curve, number),
        "rerun": facts.rerun,
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "config": facts.config,
        "map": None if drawn is None else lay_out(drawn, result, number),
        "class_numbers": [number(name) for name in sorted(row.name for row in result.per_class)],
        "names": names,
    }


def _contents(facts: Facts) -> list[tuple[str, str]]:
    """Return the ids and names of the sections that the page links to."""
    return [
        ("figures", "Accuracy"),
        ("network", "What trained"),
        *([("curves", "Training")] if facts.records else []),
        ("classes", "Classes"),
        ("confusion", "Confusion"),
        *([("map", "Map")] if facts.embedding_map else []),
        ("mistakes", "Mistakes"),
        ("uncertain", "Least certain"),
        ("images", "List"),
        ("calibration", "Calibration"),
        ("data", "Data"),
        *([("more", "More photos")] if facts.curve else []),
        ("rerun", "Run again"),
    ]


def _curve(curve: LearningCurve, number: Number) -> dict[str, Any]:
    """Return the section on what more photos are expected to give."""
    words = projection_in_words(curve)
    return {
        "chart": curve_chart(curve),
        "text": f"{words[0].upper()}{words[1:]}.",
        "how": (
            f"Heads on frozen features of {curve.model}, fitted to parts of the training photos; "
            "the dashed line is the power law of the error, and the vertical line marks all "
            "photos. The projection assumes more photos of the same kind."
        ),
        "rows": [
            {
                "name": row.name,
                "number": number(row.name),
                "photos": row.num_train,
                "now": row.top1,
                "twice": row.projected.top1,
                "gain": row.projected.gain,
            }
            for row in curve.per_class
        ],
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
    """Return the headline metrics; those that differ little have a common scale."""
    between, macro = result.intervals, result.macro.f1
    correct = f"{sum(row.num_correct for row in result.per_class):,} of {result.num_images:,}"
    keys = ("top1", "balanced_accuracy", "macro_f1")
    values = [result.top1, result.balanced_accuracy, macro]
    shared = Scale.around([*values, *_ends(between.get(key) for key in keys)], most=1.0)

    def figure(
        name: str, value: float, key: str, *, most: float = 1.0, percent: bool = True
    ) -> Figure:
        scale = Scale.around([value, *_ends([between.get(key)])], most=most)
        return _figure(name, value, between.get(key), scale, percent=percent)

    figures = [
        _figure("Top-1", result.top1, between.get("top1"), shared, note=correct),
        _figure(
            "Balanced",
            result.balanced_accuracy,
            between.get("balanced_accuracy"),
            shared,
            note="mean recall",
        ),
        _figure("Macro F1", macro, between.get("macro_f1"), shared),
    ]
    if result.top5 is not None:
        figures.append(figure("Top-5", result.top5, "top5"))
    if result.auroc is not None:
        figures.append(figure("AUROC", result.auroc, "auroc", percent=False))
    fitted = result.calibration.error_before is not None
    name = "Loss, without temperature" if fitted else "Loss"
    figures.append(figure(name, result.loss, "loss", most=math.inf, percent=False))
    figures.append(figure("Calibration error", result.calibration.error, "calibration_error"))
    return figures


def _ends(intervals: Iterable[Interval | None]) -> list[float]:
    return [end for one in intervals if one is not None for end in (one.low, one.high)]


def _figure(
    name: str,
    value: float,
    interval: Interval | None,
    scale: Scale,
    *,
    note: str = "",
    percent: bool = True,
) -> Figure:
    text = f"{value:.2%}" if percent else f"{value:.4f}"
    if interval is None:
        return Figure(name, text, note)
    low, high = (f"{end:.1%}" if percent else f"{end:.4f}" for end in (interval.low, interval.high))
    return Figure(
        name,
        text,
        note,
        at=scale.at(value),
        low=scale.at(interval.low),
        width=round(scale.at(interval.high) - scale.at(interval.low), 2),
        between=f"{low} to {high}",
        ends=(_tick(scale.low, percent), _tick(scale.high, percent)),
    )


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}%" if percent else f"{value:.3g}"


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


def _classes(classes: Sequence[ClassScore], number: Number) -> dict[str, Any]:
    """Return the rows of the classes, lowest recall first, and the scale of their intervals."""
    order = sorted(classes, key=lambda row: (1.0 if row.top1 is None else row.top1, row.name))
    there = [row.top1 for row in order if row.top1 is not None]
    scale = Scale.around([*there, *_ends(row.interval for row in order), 1.0], most=1.0)
    return {
        "rows": [_class_row(row, scale, number) for row in order],
        "ends": (_tick(scale.low, True), _tick(scale.high, True)),
    }


def _class_row(row: ClassScore, scale: Scale, number: Number) -> dict[str, Any]:
    interval = row.interval
    low, high = (scale.low, scale.low) if interval is None else (interval.low, interval.high)
    return {
        "name": row.name,
        "number": number(row.name),
        "images": row.num_images,
        "precision": row.precision,
        "recall": row.top1,
        "f1": row.f1,
        "between": "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}",
        "at": None if row.top1 is None else scale.at(row.top1),
        "low": scale.at(low),
        "width": round(scale.at(high) - scale.at(low), 2),
    }


def _matrix_text(result: EvalResult, matrix: Matrix) -> str:
    text = "Classes that are often confused with each other are neighbours."
    if matrix.columns == matrix.size:
        return text * (matrix.size > IN_ORDER)
    return (
        f"The {matrix.size} classes of the most confused pairs are shown, of "
        f"{len(result.per_class):,}; the last column counts predictions of the others. {text}"
    )


def _picture(picture: Picture, number: Number, places: Mapping[str, int]) -> dict[str, Any]:
    left, top, width, height = picture.seen
    across, down = picture.size
    return {
        "item": places[picture.path],
        "path": picture.path,
        "true": picture.true,
        "predicted": picture.predicted,
        "wrong": picture.true != picture.predicted,
        "probability": f"{picture.probability:.1%} sure",
        "photo": picture.photo,
        "size": picture.size,
        "seen": tuple(
            round(value, 1) for value in (left * across, top * down, width * across, height * down)
        ),
        "top": " ".join(f"{number(name)}:{share:.4f}" for name, share in picture.top),
        "heat": picture.heat,
    }


def _listed(image: Listed, number: Number) -> dict[str, Any]:
    wrong = image.true != image.predicted
    return {
        "path": image.path,
        "true": image.true,
        "predicted": image.predicted,
        "classes": f"{number(image.true)} {number(image.predicted)}",
        "kinds": " ".join(["mistake"] * wrong + ["uncertain"] * image.uncertain),
        "probability": f"{image.probability:.4f}",
    }


def _mistakes_text(facts: Facts) -> str:
    shown = len(facts.mistakes)
    which = f"All {plural(facts.num_mistakes, 'mistake')}, those with the highest loss first."
    if shown < facts.num_mistakes:
        which = (
            f"{shown:,} of {plural(facts.num_mistakes, 'mistake')}: those with the highest loss, "
            "and some of every confused pair."
        )
    if any(picture.heat for picture in facts.mistakes):
        which += (
            " Where two pictures stand side by side, they are the part that the network saw, and "
            "which regions of it support the predicted class (Grad-CAM, Selvaraju et al. 2017)."
        )
    return which


def _listed_text(facts: Facts) -> str:
    mistakes = sum(image.true != image.predicted for image in facts.listed)
    text = f"All {plural(mistakes, 'mistake')}"
    if mistakes < facts.num_mistakes:
        text = f"{mistakes:,} of {plural(facts.num_mistakes, 'mistake')}"
    return f"{text} and the least certain predictions as a list"


def _calibration_text(calibration: Calibration) -> str:
    text = f"Expected calibration error {calibration.error:.2%}"
    if calibration.error_before is None:
        return f"{text}. A temperature, which changes no prediction, may lower it:"
    fitted = ", fitted on these images" if calibration.fitted else ""
    return (
        f"{text} at temperature {calibration.temperature:.3g}{fitted}; without it "
        f"{calibration.error_before:.2%}. The loss with it is {calibration.loss:.4f}."
    )
