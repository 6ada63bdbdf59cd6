"""Accuracy of heads on parts of the training images, and what more images are expected to give.

The heads are logistic regressions on frozen features. The interval of the projection is a bootstrap
over draws of the training images and over validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.core.reporter import Reporter
from finetune.core.seeding import seed_for
from finetune.core.signals import unless_asked
from finetune.core.threads import one_thread_a_core
from finetune.tuning.logistic_regression import Standardisation, fit_path
from finetune.tuning.power_law import Floats, PowerLaws, fit_power_laws

NUM_SIZES, NUM_DRAWS = 8, 5
PENALTY = 0.1
"""L2 penalty of all heads. On MobileNetV2's features it was within a point of the best of 1 to
0.001 with 100 to 3,252 images of flowers5, and within 1.3 points with 475 to 7,600 of cifar100, so
that no penalty has to be selected for each size."""
RESAMPLES = 1000
_RANGE = 16
"""Largest ratio of all images to the smallest size: with fewer, errors follow no power law yet."""
_OF_CLASS, _PART = 5, 5
"""Images of a class in the smallest size, unless that is more than a fifth of all images. With one
or two of some classes and one more of others, heads favour the latter."""
_FEWEST_OF_CLASS, _FEWEST = 10, 40
_STEADY = 4
"""Number of the largest sizes that give the level of a class, and the spread over draws."""


def fewest_images(num_classes: int) -> int:
    """Return the minimum number of training images for a learning curve."""
    return max(_FEWEST_OF_CLASS * num_classes, _FEWEST)


def sizes_for(num_images: int, num_classes: int) -> tuple[int, ...]:
    """Return the numbers of images of the subsets, in equal ratios, up to all images.

    The smallest is a sixteenth of the images; with many classes, five of each.
    """
    smallest = max(num_images / _RANGE, min(_OF_CLASS * num_classes, num_images / _PART))
    ratio = num_images / smallest
    return tuple(
        round(smallest * ratio ** (number / (NUM_SIZES - 1))) for number in range(NUM_SIZES)
    )


def nested_order(labels: Tensor, groups: Sequence[str], *, seed: int) -> Tensor:
    """Return an order of the images in which every prefix is a stratified subset.

    A prefix has an image of every class, and its share of each class is that of all images, up to
    one image. Images of a group of the same class follow each other, so that a prefix cuts few
    groups.

    Args:
        labels: Class indices ``(N,)`` int64.
        groups: Group of each image; empty without groups.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    if groups:
        first: dict[str, int] = {}
        of_group = [first.setdefault(group, at) for at, group in enumerate(groups)]
        place = place[of_group]
    key = torch.empty(len(labels), dtype=torch.float64)
    for label in sorted({*labels.tolist()}):
        inside = (labels == label).nonzero()[:, 0]
        inside = inside[place[inside].argsort(stable=True)]
        shift = torch.rand(1, generator=generator, dtype=torch.float64)
        key[inside] = (torch.arange(len(inside)) + shift) / len(inside)
        key[inside[0]] = -1
    return key.argsort(stable=True)


@dataclass(frozen=True)
class CurveErrors:
    """Mistakes of the heads.

    Attributes:
        sizes: Number of training images of each size, the last one all of them.
        wrong: Whether an image is classified wrongly, ``(draws, sizes, images)``; the last size is
            the same in all draws.
        truth: Class index of each validation image ``(images,)``.
        groups: Group index of each validation image ``(images,)``, which are resampled together.
    """

    sizes: tuple[int, ...]
    wrong: NDArray[np.bool_]
    truth: NDArray[np.int64]
    groups: NDArray[np.int64]


def measure_errors(  # noqa: PLR0913
    features: Tensor,
    labels: Tensor,
    val: Tensor,
    truth: Tensor,
    *,
    num_classes: int,
    groups: Sequence[str],
    val_groups: Sequence[str],
    seed: int,
    reporter: Reporter,
) -> CurveErrors:
    """Fit heads on nested, stratified subsets, one per core at a time.

    Args:
        features, val: Features of the training ``(N, D)`` and validation images ``(M, D)``.
        labels, truth: Class indices of the training ``(N,)`` and validation images ``(M,)``.
        groups, val_groups: Groups of the images; empty without groups.
    """
    sizes = sizes_for(len(labels), num_classes)
    orders = [
        nested_order(labels, groups, seed=seed_for(seed, "learning curve", draw))
        for draw in range(NUM_DRAWS)
    ]
    wrong = np.empty((NUM_DRAWS, NUM_SIZES, len(truth)), np.bool_)

    def fitted(at: tuple[int, int]) -> None:
        draw, size = at
        known = orders[draw][: sizes[size]]
        standardised = Standardisation.of(features[known])
        [layer] = fit_path(
            standardised(features[known]),
            labels[known],
            num_classes=num_classes,
            penalties=(PENALTY,),
        )
        wrong[draw, size] = (layer(standardised(val)).argmax(dim=1) != truth).numpy()

    last = NUM_SIZES - 1
    # The largest first, so that no core ends with a large one alone.
    every = [(0, last), *((draw, at) for at in range(last)[::-1] for draw in range(NUM_DRAWS))]
    with one_thread_a_core(len(every)) as pool:
        fits = unless_asked(pool.map(fitted, every))
        for _ in reporter.track(fits, "fit heads on parts of the photos", total=len(every)):
            pass
    wrong[1:, last] = wrong[0, last]
    numbers: dict[str, int] = {}
    of_image = [numbers.setdefault(group, len(numbers)) for group in val_groups]
    return CurveErrors(
        sizes, wrong, truth.numpy(), np.array(of_image or range(len(truth)), np.int64)
    )


@dataclass(frozen=True)
class Estimate:
    """Value with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CurveFit:
    """Learning curve and its projection to twice the images; all values are errors.

    Attributes:
        points: Error at each size, the mean over the draws.
        floor, scale, exponent: Power law of the error by the number of images.
        projected: Error with twice the images.
        gain: Difference between the error with all images and the projected one.
        classes: Class index, current error, projected error and gain of each class that has
            validation images.
    """

    points: tuple[Estimate, ...]
    floor: float
    scale: float
    exponent: float
    projected: Estimate
    gain: Estimate
    classes: tuple[tuple[int, float, Estimate, Estimate], ...]


def fit_curve(errors: CurveErrors, *, seed: int) -> CurveFit:
    """Fit the power law, and project it to twice the images, with 95 % intervals.

    A resample draws the draws with replacement, gives the validation images (or their groups)
    exponential weights, as in the Bayesian bootstrap (Rubin 1981), and fits the law again. Heads
    of other training images would differ as well: the error with all images, of which there is one
    head, and the one with twice the images each get normal noise. Its variance is that over the
    draws at the largest sizes, corrected for their overlap and scaled by 1 / n to all images.

    The errors of single classes are too noisy for laws of their own. The law of a class is that of
    all images times a factor, fitted to its errors at the largest sizes.
    """
    generator = np.random.default_rng(seed_for(seed, "learning curve bootstrap"))
    present = np.unique(errors.truth)
    sampled = _resampled(errors, generator)  # (1 + R, S, 1 + classes)
    relative = np.array(errors.sizes) / errors.sizes[-1]
    spread = _spread(errors)
    noise = generator.normal(size=(2, RESAMPLES, len(present) + 1)) * spread
    sampled[1:, -1] += noise[0]
    laws = fit_power_laws(relative, sampled[:, :, 0])
    projected = _projected(laws, relative, sampled)
    gain = sampled[:, -1] - projected
    # A class keeps its measured error, less what its law says that more images take away: it would
    # otherwise seem to get worse where its error is below the law.
    gain[:, 1:] = _class_gains(laws, projected[:, 1:])
    projected[:, 1:] = np.maximum(sampled[:, -1, 1:] - gain[:, 1:], 0)
    projected[1:] += noise[1]
    gain[1:] -= noise[1]
    shares = np.clip(projected, 0, 1)
    scale = laws.scale[0] * errors.sizes[-1] ** laws.exponent[0]
    return CurveFit(
        points=tuple(_estimate(np.clip(sampled[:, at, 0], 0, 1)) for at in range(NUM_SIZES)),
        floor=float(laws.floor[0]),
        scale=float(scale),
        exponent=float(laws.exponent[0]),
        projected=_estimate(shares[:, 0]),
        gain=_estimate(gain[:, 0]),
        classes=tuple(
            (
                int(label),
                float(sampled[0, -1, number]),
                _estimate(shares[:, number]),
                _estimate(gain[:, number]),
            )
            for number, label in enumerate(present, start=1)
        ),
    )


def _resampled(errors: CurveErrors, generator: np.random.Generator) -> Floats:
    """Return the errors over all images and of each class, ``(1 + R, sizes, 1 + classes)``.

    The first row is without resampling.
    """
    order = np.argsort(errors.truth, kind="stable")
    starts = np.unique(errors.truth[order], return_index=True)[1]
    draws = errors.wrong.shape[0]
    wrong = errors.wrong[:, :, order].astype(np.float32)
    groups = errors.groups[order]
    num_groups = int(groups.max()) + 1
    found = np.empty((1 + RESAMPLES, wrong.shape[1], 1 + len(starts)))
    for number in range(1 + RESAMPLES):
        if number:
            weights = generator.standard_exponential(num_groups, np.float32)[groups]
            times = generator.multinomial(draws, np.full(draws, 1 / draws)) / draws
        else:
            weights, times = np.ones(len(groups), np.float32), np.full(draws, 1 / draws)
        sums = np.add.reduceat(np.tensordot(times, wrong, 1) * weights, starts, axis=1)
        totals = np.add.reduceat(weights, starts)
        found[number, :, 0] = sums.sum(axis=1) / totals.sum()
        found[number, :, 1:] = sums / totals
    return found


def _spread(errors: CurveErrors) -> Floats:
    """Return the standard deviation of the error over training sets of all images' number.

    Subsets that are drawn from the same images overlap, so that they differ less than independent
    ones would; the factor is that of sampling without replacement.

    Returns:
        That of the error over all images, then of each class.
    """
    at = slice(-1 - _STEADY, -1)
    share = np.array(errors.sizes)[at, None] / errors.sizes[-1]
    wrong = errors.wrong[:, at]
    by_class = [wrong[..., errors.truth == label].mean(axis=2) for label in np.unique(errors.truth)]
    means = np.stack([wrong.mean(axis=2), *by_class], axis=2)
    variance = means.var(axis=0, ddof=1) / (1 - share) * share
    return np.asarray(np.sqrt(variance.mean(axis=0)))


def _projected(laws: PowerLaws, relative: Floats, sampled: Floats) -> Floats:
    """Return the errors with twice the images, ``(1 + R, 1 + classes)``."""
    largest = np.stack([laws.at(size) for size in relative[-_STEADY:]], axis=1)
    squares = (largest**2).sum(axis=1)
    factors = np.divide(
        (sampled[:, -_STEADY:] * largest[..., None]).sum(axis=1),
        squares[:, None],
        out=np.zeros(sampled[:, 0].shape),
        where=squares[:, None] > 0,
    )
    factors[:, 0] = 1
    return np.asarray(factors * laws.at(2.0)[:, None])


def _class_gains(laws: PowerLaws, projected: Floats) -> Floats:
    """Return the fall of the error of each class from all images to twice as many, by its law."""
    twice, once = laws.at(2.0)[:, None], laws.at(1.0)[:, None]
    shares = np.divide(once - twice, twice, out=np.zeros_like(twice), where=twice > 0)
    return np.asarray(projected * shares)


def _estimate(values: Floats) -> Estimate:
    """Return the first value, with the percentiles of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))
