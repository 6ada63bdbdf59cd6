"""How far a figure can be trusted on so many images: intervals and a paired test; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from finetune.eval_results import Interval

CONFIDENCE = 0.95
RESAMPLES = 1000
MOST_IMAGES = 50_000
"""Bootstrap up to so many images: a thousand resamples of these take some three seconds."""
MOST_SCORES = 200_000
"""Images times classes up to which the AUROC is resampled, with each class sorted anew."""

FEWEST_GROUPS = 10
"""Resamples of fewer groups are so much alike that their intervals come out too narrow."""

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def wilson(successes: int, trials: int) -> Interval | None:
    """Score interval of a share (Wilson 1927); unlike the usual one it is right near 0 and 1.

    A closed form of four lines: scipy has it as well, behind an import of half a second.
    """
    if not trials:
        return None
    share, spread = successes / trials, _Z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / trials + spread / trials / 4) / (1 + spread)
    # At 0 and 1 the bound is the share itself; rounding would put it a hair beyond.
    low = 0.0 if successes == 0 else middle - half
    return Interval(low, 1.0 if successes == trials else middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact test (McNemar 1947): a fair coin for each disagreement."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    # Whole numbers first: 2.0 ** total would overflow from 1,024 disagreements on.
    return min(1.0, float(2 * tail / 2**total))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for testing several at once (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


@dataclass(frozen=True)
class Sample:
    """One evaluation, image by image.

    Attributes:
        true, predicted: Class of each image ``(N,)``.
        loss: Of each image ``(N,)``.
        in_top5: ``(N,)``; None up to five classes.
        bins: Calibration bin of each image ``(N,)``.
        gap: Probability of the prediction, less 1 where it was right ``(N,)``.
        scores: Probabilities ``(N, classes)`` for the AUROC; None where they are too many.
        groups: Number of the group that each image belongs to ``(N,)``; None where the data has
            none.
    """

    true: Ints
    predicted: Ints
    num_classes: int
    loss: Floats
    in_top5: Floats | None
    bins: Ints
    gap: Floats
    scores: Floats | None
    groups: Ints | None

    def __len__(self) -> int:
        return len(self.true)


def bootstrap(sample: Sample, *, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals (Efron 1979) from resampled images, or groups where there are any.

    What shows no spread, such as a perfect score, is left out: an interval of no width would claim
    a certainty that no number of images gives.

    The calibration error is a sum of distances, so that resampling adds to it: of probabilities
    that are nearly honest every resample has more of it than the images themselves. Its interval
    is moved by this bias, the mean of the resamples less the figure (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 10), and cut at 0 and 1.
    """
    if not 2 <= len(sample) <= MOST_IMAGES:
        return {}
    generator = np.random.default_rng(seed)
    figures = _figures(sample)
    draws: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(RESAMPLES):
        weights = _draw(sample, generator)
        for name, figure in figures.items():
            draws[name].append(figure(weights))
    tail = 100 * (1 - CONFIDENCE) / 2
    intervals = {}
    for name, values in draws.items():
        known = [value for value in values if not math.isnan(value)]
        if known and min(known) < max(known):
            low, high = np.percentile(known, [tail, 100 - tail])
            if name == "calibration_error":
                bias = np.mean(known) - figures[name](np.ones(len(sample)))
                low, high = np.clip([low - bias, high - bias], 0, 1)
            intervals[name] = Interval(float(low), float(high))
    return intervals


def _draw(sample: Sample, generator: np.random.Generator) -> Floats:
    """How often each image came, drawn with replacement: alone, or with its whole group."""
    if sample.groups is None:
        drawn = generator.integers(0, len(sample), len(sample))
        return np.bincount(drawn, minlength=len(sample)).astype(np.float64)
    count = int(sample.groups.max()) + 1
    times = np.bincount(generator.integers(0, count, count), minlength=count)
    return times[sample.groups].astype(np.float64)


def _figures(sample: Sample) -> dict[str, Callable[[Floats], float]]:
    """Each figure as a function of how often each image counts."""
    classes = sample.num_classes
    correct = (sample.true == sample.predicted).astype(np.float64)

    def mean(values: Floats) -> Callable[[Floats], float]:
        return lambda weights: float(weights @ values / weights.sum())

    def balanced_accuracy(weights: Floats) -> float:
        counts = np.bincount(sample.true, weights, classes)
        hits = np.bincount(sample.true, weights * correct, classes)
        present = counts > 0
        return float((hits[present] / counts[present]).mean())

    def macro_f1(weights: Floats) -> float:
        counts = np.bincount(sample.true, weights, classes)
        named = np.bincount(sample.predicted, weights, classes)
        hits = np.bincount(sample.true, weights * correct, classes)
        present = counts + named > 0
        return float((2 * hits[present] / (counts + named)[present]).mean())

    def calibration_error(weights: Floats) -> float:
        gaps = np.bincount(sample.bins, weights * sample.gap)
        return float(np.abs(gaps).sum() / weights.sum())

    figures = {
        "top1": mean(correct),
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "loss": mean(sample.loss),
        "calibration_error": calibration_error,
    }
    if sample.in_top5 is not None:
        figures["top5"] = mean(sample.in_top5)
    if sample.scores is not None and sample.scores.size <= MOST_SCORES:
        figures["auroc"] = _auroc(sample.scores, sample.true)
    return figures


def _auroc(scores: Floats, true: Ints) -> Callable[[Floats], float]:
    """Mean over classes of the area under the ROC curve, as a function of the images' weights.

    The area is the chance that an image of the class scores above one of another class, ties
    counting half (Mann and Whitney 1947).
    """
    sorted_classes = []
    for label in range(scores.shape[1]):
        order = np.argsort(scores[:, label], kind="stable")
        ranked = scores[order, label]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        sorted_classes.append((order, starts, (true == label)[order].astype(np.float64)))

    def area(weights: Floats) -> float:
        areas = []
        for order, starts, inside in sorted_classes:
            ours, others = weights[order] * inside, weights[order] * (1 - inside)
            if not ours.any() or not others.any():
                continue
            ours, others = np.add.reduceat(ours, starts), np.add.reduceat(others, starts)
            below = np.cumsum(others) - others
            areas.append(float(ours @ (below + others / 2) / (ours.sum() * others.sum())))
        return sum(areas) / len(areas) if areas else math.nan

    return area
