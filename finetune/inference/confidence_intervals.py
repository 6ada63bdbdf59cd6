"""Confidence intervals, metrics of weighted images, and a paired significance test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from finetune.results.evaluation import Interval
from finetune.training.metrics import balanced_accuracy, macro_f1

CONFIDENCE = 0.95
RESAMPLES = 1000
MOST_IMAGES = 50_000
"""Maximum number of images for the bootstrap; 1,000 resamples then take about three seconds."""
MOST_SCORES = 200_000
"""Maximum of images times classes for resampling the AUROC."""

FEWEST_GROUPS = 10
"""Number of groups below which bootstrap intervals are too narrow."""

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def wilson(successes: int, trials: int) -> Interval | None:
    """Wilson score interval of a proportion (Wilson 1927), which is accurate near 0 and 1.

    scipy provides it too, but its import takes half a second.
    """
    if not trials:
        return None
    share, spread = successes / trials, _Z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / trials + spread / trials / 4) / (1 + spread)
    # At 0 and 1 the bound equals the share exactly; rounding could put it slightly outside.
    low = 0.0 if successes == 0 else middle - half
    return Interval(low, 1.0 if successes == trials else middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947)."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    # Integer arithmetic, because 2.0 ** total overflows from 1,024 disagreements on.
    return min(1.0, float(2 * tail / 2**total))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


@dataclass(frozen=True)
class Sample:
    """Per-image results of one evaluation.

    Attributes:
        true: True class index of each image ``(N,)``.
        predicted: Predicted class index of each image ``(N,)``.
        num_classes: Number of classes.
        loss: Cross-entropy of each image ``(N,)``.
        in_top5: Whether the true class is among the top 5 ``(N,)``; None for up to five classes.
        bins: Calibration bin of each image ``(N,)``.
        gap: Probability of the prediction, minus 1 if it is correct ``(N,)``.
        scores: Probabilities ``(N, classes)`` for the AUROC; None if there are too many.
        groups: Group index of each image ``(N,)``; None if the data has no groups.
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
    """Percentile bootstrap intervals (Efron 1979) over images, or over groups if there are any.

    A metric that is the same in all resamples, such as a perfect score, gets no interval: an
    interval of zero width would claim certainty.

    The calibration error is a sum of absolute differences, so resampling increases it, most of all
    when probabilities are nearly calibrated. Its interval is shifted by the estimated bias, the
    mean of the resamples minus the metric (Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, chapter 10), and clipped to 0 and 1.
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
    """Draw images or whole groups with replacement, and return each image's count."""
    if sample.groups is None:
        drawn = generator.integers(0, len(sample), len(sample))
        return np.bincount(drawn, minlength=len(sample)).astype(np.float64)
    count = int(sample.groups.max()) + 1
    times = np.bincount(generator.integers(0, count, count), minlength=count)
    return times[sample.groups].astype(np.float64)


def _figures(sample: Sample) -> dict[str, Callable[[Floats], float]]:
    """Return each metric as a function of the image weights ``(N,)``."""
    classes = sample.num_classes
    correct = (sample.true == sample.predicted).astype(np.float64)

    def mean(values: Floats) -> Callable[[Floats], float]:
        return lambda weights: float(weights @ values / weights.sum())

    def by_class(of: Ints, weights: Floats) -> list[float]:
        sums: list[float] = np.bincount(of, weights, classes).tolist()
        return sums

    def balanced(weights: Floats) -> float:
        hits = by_class(sample.true, weights * correct)
        return balanced_accuracy(hits, by_class(sample.true, weights))

    def f1(weights: Floats) -> float:
        hits = by_class(sample.true, weights * correct)
        predicted = by_class(sample.predicted, weights)
        return macro_f1(hits, by_class(sample.true, weights), predicted)

    figures: dict[str, Callable[[Floats], float]] = {
        "top1": mean(correct),
        "balanced_accuracy": balanced,
        "macro_f1": f1,
        "loss": mean(sample.loss),
        "calibration_error": partial(calibration_error, sample.bins, sample.gap),
    }
    if sample.in_top5 is not None:
        figures["top5"] = mean(sample.in_top5)
    if sample.scores is not None and sample.scores.size <= MOST_SCORES:
        rankings = [
            _Ranking.of(sample.scores[:, label], sample.true == label) for label in range(classes)
        ]
        figures["auroc"] = lambda weights: _mean_known(one.area(weights) for one in rankings)
    return figures


def calibration_error(bins: Ints, gap: Floats, weights: Floats) -> float:
    """Expected calibration error (Guo et al. 2017); arguments as in `Sample`, with image weights
    ``(N,)``.
    """
    gaps = np.bincount(bins, weights * gap)
    return float(np.abs(gaps).sum() / weights.sum())


def auroc(scores: Floats, true: Ints) -> float:
    """Mean one-vs-rest AUROC over the classes that some, but not all, images belong to; else NaN.

    Args:
        scores: Probabilities ``(N, classes)``.
        true: True class index of each image ``(N,)``.
    """
    weights = np.ones(len(true))
    return _mean_known(
        _Ranking.of(scores[:, label], true == label).area(weights)
        for label in range(scores.shape[1])
    )


@dataclass(frozen=True)
class _Ranking:
    """Images in ascending order of one class's score.

    Attributes:
        order: Indices of the images.
        starts: Positions in the order at which another score begins.
        inside: 1.0 for images of the class, in this order.
    """

    order: Ints
    starts: Ints
    inside: Floats

    @classmethod
    def of(cls, scores: Floats, inside: NDArray[np.bool_]) -> _Ranking:
        """Rank images by scores ``(N,)``."""
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        return cls(order, starts, inside[order].astype(np.float64))

    def area(self, weights: Floats) -> float:
        """Return the probability that an image of the class scores above an image of another class,
        where ties count half (Mann and Whitney 1947); NaN without images of both kinds.

        Args:
            weights: Weight of each image ``(N,)``.
        """
        ours, others = weights[self.order] * self.inside, weights[self.order] * (1 - self.inside)
        if not ours.any() or not others.any():
            return math.nan
        ours, others = np.add.reduceat(ours, self.starts), np.add.reduceat(others, self.starts)
        below = np.cumsum(others) - others
        return float(ours @ (below + others / 2) / (ours.sum() * others.sum()))


def _mean_known(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
