"""Metrics of an evaluation, computed from logits.

AUROC and calibration error are those that the bootstrap resamples, because torchmetrics has no
weighted ones; the others are torchmetrics'. It takes two seconds to import, mostly for audio
metrics, so it is imported only when logits have been computed. ``train`` never imports it; it uses
`finetune.training.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from finetune.inference.calibration import probabilities
from finetune.inference.confidence_intervals import (
    FEWEST_GROUPS,
    MOST_IMAGES,
    MOST_SCORES,
    Floats,
    Ints,
    Sample,
    auroc,
    bootstrap,
    calibration_error,
    wilson,
)
from finetune.results.evaluation import Bin, Calibration, ClassScore, ConfusedPair, Interval, Macro
from finetune.training.metrics import TOP5_FROM

BINS = 15
"""Number of bins of equal width, as in Guo et al. 2017."""
MOST_FOR_AUROC = 20_000_000
"""Maximum of images times classes for the AUROC, which then takes about ten seconds."""
MOST_CLASSES_IN_MATRIX = 200
_BOOTSTRAPPED = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
    "auroc": "AUROC",
    "calibration_error": "calibration error",
}
"""Display names of the metrics that have only bootstrap intervals."""


@dataclass(frozen=True)
class Scored:
    """All metrics computed from logits and labels.

    Attributes:
        probabilities: Probabilities ``(N, classes)`` in float32, with the temperature applied.
        losses: Cross-entropy of each image ``(N,)``, with the temperature applied.
    """

    probabilities: Tensor
    losses: Tensor
    macro: Macro
    auroc: float | None
    calibration: Calibration
    per_class: tuple[ClassScore, ...]
    confused: tuple[ConfusedPair, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    intervals: dict[str, Interval]
    interval_method: str


def score(
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    temperature: float | None = None,
    fitted: bool = False,
    groups: Sequence[str] = (),
) -> Scored:
    """Compute all metrics of logits ``(N, classes)`` and labels ``(N,)``.

    Args:
        logits: Logits ``(N, classes)``, not scaled by a temperature.
        labels: True class indices ``(N,)``.
        class_names: Class names, in the order of the logits.
        temperature: Temperature fitted by ``eval --calibrate``; may be None.
        fitted: Whether the temperature was fitted on these images.
        groups: Group of each image, such as a person. Images of a group are not independent, so
            intervals resample whole groups.
    """
    from torchmetrics.functional import classification as tm

    classes = len(class_names)
    shares = probabilities(logits, temperature)
    predicted = logits.argmax(dim=1)
    precision, recall, f1 = (
        getattr(tm, f"multiclass_{name}")(predicted, labels, classes, average="none")
        for name in ("precision", "recall", "f1_score")
    )
    matrix = tm.multiclass_confusion_matrix(predicted, labels, classes)
    there = (matrix.sum(dim=0) + matrix.sum(dim=1)) > 0
    losses = F.cross_entropy(
        logits if temperature is None else logits / temperature, labels, reduction="none"
    )
    error = _calibration_error(shares, labels)
    plain = None if temperature is None else probabilities(logits, None)
    num_groups = len(set(groups))
    per_class = _per_class(class_names, matrix, precision, f1)
    intervals = {}
    if num_groups == 1:  # images of one group are not independent
        per_class = tuple(replace(row, interval=None) for row in per_class)
    else:
        intervals = _intervals(logits, labels, shares, groups)
    area = _auroc(shares, labels)
    return Scored(
        probabilities=shares,
        losses=losses,
        macro=Macro(*(float(row[there].double().mean()) for row in (precision, recall, f1))),
        auroc=area,
        calibration=Calibration(
            error=error,
            bins=_bins(shares, labels),
            temperature=1.0 if temperature is None else temperature,
            error_before=None if plain is None else _calibration_error(plain, labels),
            loss=float(losses.double().mean()),
            fitted=fitted,
        ),
        per_class=per_class,
        confused=_confused(class_names, matrix),
        confusion=tuple(map(tuple, matrix.tolist())) if classes <= MOST_CLASSES_IN_MATRIX else None,
        intervals=intervals,
        interval_method=_method(
            len(labels), classes, intervals, num_groups=num_groups, has_auroc=area is not None
        ),
    )


def _per_class(
    names: Sequence[str], matrix: Tensor, precision: Tensor, f1: Tensor
) -> tuple[ClassScore, ...]:
    counts, named = matrix.sum(dim=1).tolist(), matrix.sum(dim=0).tolist()
    correct = matrix.diagonal().tolist()
    return tuple(
        ClassScore(
            name=name,
            num_images=counts[at],
            num_correct=correct[at],
            num_predicted=named[at],
            top1=correct[at] / counts[at] if counts[at] else None,
            precision=float(precision[at]) if named[at] else None,
            f1=float(f1[at]) if counts[at] or named[at] else None,
            interval=wilson(correct[at], counts[at]),
        )
        for at, name in enumerate(names)
    )


def _confused(names: Sequence[str], matrix: Tensor) -> tuple[ConfusedPair, ...]:
    counts = matrix.sum(dim=1).tolist()
    wrong = matrix.clone()
    wrong.fill_diagonal_(0)
    cells = [(int(wrong[t, p]), t, p) for t, p in wrong.nonzero().tolist()]
    cells.sort(key=lambda cell: (-cell[0], cell[1:]))
    return tuple(ConfusedPair(names[t], names[p], n, n / counts[t]) for n, t, p in cells)


def _auroc(shares: Tensor, labels: Tensor) -> float | None:
    """AUROC; None if it is defined for no class, or would take too long."""
    if shares.numel() > MOST_FOR_AUROC:
        return None
    area = auroc(shares.double().numpy(), labels.numpy())
    return None if math.isnan(area) else area


def _calibration_error(shares: Tensor, labels: Tensor) -> float:
    bins, gap = _calibration_of(shares, labels)
    return calibration_error(bins, gap, np.ones(len(labels)))


def _calibration_of(shares: Tensor, labels: Tensor) -> tuple[Ints, Floats]:
    """Return the calibration bin and the gap of each image, as in `Sample`."""
    confidence, predicted = shares.max(dim=1)
    gap = confidence.double() - (predicted == labels).double()
    return _bin_of(confidence).numpy(), gap.numpy()


def _bin_of(confidence: Tensor) -> Tensor:
    """Return the bin of each probability; bins are closed on the right.

    With `BINS` or more classes the first bins stay empty.
    """
    return (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1


def _bins(shares: Tensor, labels: Tensor) -> tuple[Bin, ...]:
    confidence, predicted = shares.max(dim=1)
    right = (predicted == labels).double()
    at = _bin_of(confidence)
    bins = []
    for number in range(BINS):
        inside = at == number
        count = int(inside.sum())
        bins.append(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                count=count,
                probability=float(confidence[inside].double().mean()) if count else None,
                accuracy=float(right[inside].mean()) if count else None,
            )
        )
    return tuple(bins)


def _intervals(
    logits: Tensor, labels: Tensor, shares: Tensor, groups: Sequence[str]
) -> dict[str, Interval]:
    classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    right = predicted == labels
    bins, gap = _calibration_of(shares, labels)
    in_top5 = None
    if classes >= TOP5_FROM:
        in_top5 = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
    sample = Sample(
        true=labels.numpy(),
        predicted=predicted.numpy(),
        num_classes=classes,
        loss=F.cross_entropy(logits, labels, reduction="none").double().numpy(),
        in_top5=None if in_top5 is None else in_top5.double().numpy(),
        bins=bins,
        gap=gap,
        scores=shares.double().numpy(),
        groups=np.unique(np.array(groups), return_inverse=True)[1] if groups else None,
    )
    intervals = bootstrap(sample)
    shares_right = {"top1": right} | ({} if in_top5 is None else {"top5": in_top5})
    for name, hits in shares_right.items():
        binomial = wilson(int(hits.sum()), len(labels))
        drawn = intervals.get(name) if groups else None
        assert binomial is not None
        intervals[name] = binomial if drawn is None else _wider(binomial, drawn)
    return intervals


def _wider(one: Interval, other: Interval) -> Interval:
    """Return the union of a binomial and a group bootstrap interval.

    The binomial interval is too narrow because images of a group are similar; the bootstrap
    interval is too narrow if few groups agree by chance.
    """
    return Interval(min(one.low, other.low), max(one.high, other.high))


def _method(
    images: int,
    classes: int,
    intervals: Mapping[str, Interval],
    *,
    num_groups: int,
    has_auroc: bool,
) -> str:
    """Describe the interval methods, their limits and the metrics without interval."""
    if num_groups == 1:
        return "95 %: none, since all images are of one group and resemble each other"
    shares = "top-1, top-5" if classes >= TOP5_FROM else "top-1"
    wilsons = f"95 %: Wilson for {shares} and each class"
    if images > MOST_IMAGES:
        return f"{wilsons}; no bootstrap above {MOST_IMAGES:,} images"
    if images == 1:
        return f"{wilsons}; no bootstrap of a single image"
    if not num_groups:
        text = f"{wilsons}; else bootstrap (1,000 resamples, seeded)"
    else:
        text = (
            f"95 %: bootstrap of {num_groups:,} groups of images (1,000 resamples, seeded), with "
            "Wilson's where that is wider"
        )
        if num_groups < FEWEST_GROUPS:
            text += "; with so few groups, the intervals are too narrow"
    figures = dict(_BOOTSTRAPPED)
    if not has_auroc or images * classes > MOST_SCORES:
        del figures["auroc"]
        if has_auroc:
            text += f"; none for AUROC above {MOST_SCORES:,} image-class pairs"
    constant = [words for name, words in figures.items() if name not in intervals]
    if constant:
        text += f"; none for {', '.join(constant)}, the same in all resamples"
    return text
