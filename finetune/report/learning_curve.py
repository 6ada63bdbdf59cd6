"""Text output of ``learning-curve``."""

from __future__ import annotations

from finetune.core.text import plural
from finetune.report.layout import Bar, Document, Field, Fields, Paragraph, Table, document, styled
from finetune.results.learning_curve import LearningCurve, PowerLaw, Projected

_LEAST_BAR = 1 / 16
_MOST_CLASSES = 10
"""Number of classes that are shown without ``--verbose``."""


def render_learning_curve(result: LearningCurve) -> Document:
    """Render the accuracy by the number of photos, the projection, and that of each class."""
    return document(
        _points(result),
        Paragraph(styled(projection_in_words(result), "result")),
        Fields(_facts(result)),
        _classes(result),
    )


def projection_in_words(result: LearningCurve) -> str:
    """Return the projection as a sentence, such as ``twice the photos: 91.8 % -> 93.1 %``."""
    projected = result.projected
    most = result.per_class[0]
    is_clear = most.projected.gain_low > 0 and projected.gain > 0
    where = f"; most for {most.name}" if is_clear else ""
    return (
        f"twice the photos: {100 * result.now.top1:.1f} % -> {100 * projected.top1:.1f} % "
        f"({_bounds(projected.low, projected.high)}){where}"
    )


def _points(result: LearningCurve) -> Table:
    shares = [*(point.top1 for point in result.points), result.projected.top1]
    low, high = min(shares), max(shares)

    def bar(share: float) -> Bar:
        return Bar(max((share - low) / ((high - low) or 1), _LEAST_BAR))

    rows = [
        (
            f"{point.num_photos:,}",
            f"{point.top1:.1%}",
            _bounds(point.low, point.high),
            "",
            bar(point.top1),
        )
        for point in result.points
    ]
    projected = result.projected
    rows.append(
        (
            f"{projected.num_photos:,}",
            f"{projected.top1:.1%}",
            _bounds(projected.low, projected.high),
            "projected",
            bar(projected.top1),
        )
    )
    header = ("training photos", "top-1", "95 % interval", "", "")
    return Table(header, rows, right=(0, 1, 2))


def _facts(result: LearningCurve) -> list[Field]:
    facts = [
        Field("Gain", _gain(result.projected)),
        Field("Law", law_in_words(result.law)),
        Field(
            "Measured",
            f"by heads on frozen features of {result.model}, {result.num_draws} draws of each "
            f"size, on {plural(result.num_val, 'validation image')}",
        ),
        Field(
            "Heads",
            f"logistic regression by L-BFGS, penalty {result.penalty:g} at every size",
            detail=True,
        ),
        Field("Assumes", "more photos of the same kind, in the same mixture of classes"),
    ]
    if result.picture:
        facts.append(Field("Picture", result.picture))
    return facts


def _gain(projected: Projected) -> str:
    points = f"{100 * projected.gain:+.1f} points"
    bounds = f"{100 * projected.gain_low:+.1f} to {100 * projected.gain_high:+.1f}"
    unsure = projected.gain_low <= 0 <= projected.gain_high
    words = "; it may be none" if unsure else ""
    return f"{points} ({bounds}){words}"


def law_in_words(law: PowerLaw) -> str:
    """Return the law as a formula, and whether the data supports a floor."""
    if not law.scale:
        return f"the error stays at {law.floor:.1%} at every number of photos n"
    falling = f"{law.scale:.3g} x n^-{law.exponent:.2f}"
    if not law.floor:
        return f"error = {falling} with n photos; the data shows no error that would remain"
    return (
        f"error = {law.floor:.1%} + {falling} with n photos, so that {law.floor:.1%} would remain"
    )


def _classes(result: LearningCurve) -> Table:
    rows = [
        (
            one.name,
            f"{one.num_train:,}",
            f"{one.num_val:,}",
            f"{one.top1:.1%}",
            f"{one.projected.top1:.1%}",
            _bounds(one.projected.low, one.projected.high),
        )
        for one in result.per_class
    ]
    header = ("class", "train", "val", "now", "twice", "95 % interval")
    return Table(header, rows, right=(1, 2, 3, 4, 5), names=(0,), brief=rows[:_MOST_CLASSES])


def _bounds(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
