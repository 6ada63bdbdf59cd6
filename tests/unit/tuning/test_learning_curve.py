"""Tests of learning curves on drawn features and made-up mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.core.reporter import SilentReporter
from finetune.tuning.learning_curve import (
    NUM_DRAWS,
    NUM_SIZES,
    CurveErrors,
    fewest_images,
    fit_curve,
    measure_errors,
    nested_order,
    sizes_for,
)


def test_every_prefix_has_each_class_in_proportion() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = labels[nested_order(labels, (), seed=3)]
    for size in range(3, 101):
        counts = order[:size].bincount(minlength=3)
        expected = size * torch.tensor([0.6, 0.3, 0.1])
        assert (counts > 0).all()
        assert (counts - expected).abs().max() <= 2.5


def test_draws_differ_and_a_seed_repeats_one() -> None:
    labels = torch.arange(40) % 2
    first, again, other = (nested_order(labels, (), seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == list(range(40))


def test_a_prefix_cuts_at_most_one_group_of_each_class() -> None:
    labels = torch.arange(60) % 2
    groups = [f"{at % 2}-{at // 12}" for at in range(60)]
    order = nested_order(labels, groups, seed=0).tolist()
    for size in (10, 24, 37):
        inside, outside = set(order[:size]), set(order[size:])
        cut = {groups[at] for at in inside} & {groups[at] for at in outside}
        assert len(cut) <= 2


@pytest.mark.parametrize(
    ("images", "classes"), [(40, 2), (40, 4), (122, 2), (3251, 5), (950, 95), (14_250, 95)]
)
def test_sizes_grow_in_equal_ratios_up_to_all_images(images: int, classes: int) -> None:
    assert images >= fewest_images(classes)
    sizes = sizes_for(images, classes)
    assert len(set(sizes)) == NUM_SIZES
    assert sizes[-1] == images
    assert sizes[0] >= 2 * classes
    ratios = np.diff(np.log(sizes))
    assert ratios.max() - ratios.min() < 0.3


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features around the centres of three classes, of which two are close to each other."""
    labels = torch.arange(count) % 3
    centres = torch.zeros(3, 20)
    centres[0, 0], centres[1, 1], centres[2, 1] = 3.0, 1.0, 2.0
    return centres[labels] + torch.randn(count, 20, generator=generator), labels


def test_errors_fall_and_the_last_size_is_one_head() -> None:
    generator = torch.Generator().manual_seed(0)
    train, labels = drawn(240, generator)
    val, truth = drawn(600, generator)
    found = measure_errors(
        train,
        labels,
        val,
        truth,
        num_classes=3,
        groups=(),
        val_groups=(),
        seed=0,
        reporter=SilentReporter(),
    )
    assert found.wrong.shape == (NUM_DRAWS, NUM_SIZES, 600)
    assert (found.wrong[:, -1] == found.wrong[:1, -1]).all()
    errors = found.wrong.mean(axis=(0, 2))
    assert errors[0] > errors[-1] + 0.05
    fit = fit_curve(found, seed=0)
    assert fit.projected.low < fit.projected.value < fit.projected.high
    assert fit.gain.value == pytest.approx(fit.points[-1].value - fit.projected.value)
    labels_found, errors_found = zip(*[(one[0], one[1]) for one in fit.classes], strict=True)
    assert labels_found == (0, 1, 2)
    assert np.mean(errors_found) == pytest.approx(fit.points[-1].value)
    assert errors_found[0] < min(errors_found[1:])


def simulated(seed: int) -> tuple[CurveErrors, float, float]:
    """Mistakes by a known law on 400 images, with the errors at all and at twice the images.

    Each image has a difficulty that all heads share, so that their mistakes are correlated.
    """
    generator = np.random.default_rng(seed)
    sizes = tuple(round(size) for size in np.geomspace(100, 1600, NUM_SIZES))
    difficulty = generator.uniform(size=400)

    def wrong(size: int) -> np.ndarray:
        error = 0.04 + 1.5 * size**-0.5
        return difficulty + generator.normal(scale=0.03, size=400) < error

    every = np.stack([[wrong(size) for size in sizes] for _ in range(NUM_DRAWS)])
    every[:, -1] = every[0, -1]
    truth = np.arange(400) % 2
    errors = CurveErrors(sizes, every, truth, np.arange(400))
    return errors, 0.04 + 1.5 * 3200**-0.5, float(wrong(3200).mean())


def test_the_intervals_hold_the_truth_in_nine_of_ten_draws() -> None:
    inside, gains = 0, 0
    for seed in range(10):
        errors, expected, measured = simulated(seed)
        fit = fit_curve(errors, seed=seed)
        inside += fit.projected.low <= expected <= fit.projected.high
        gains += fit.gain.low <= fit.points[-1].value - measured <= fit.gain.high
    assert min(inside, gains) >= 9


def test_images_of_a_group_are_resampled_together() -> None:
    errors, _, _ = simulated(0)
    alone = fit_curve(errors, seed=0).projected
    order = np.argsort(errors.wrong.mean(axis=(0, 1)), kind="stable")
    groups = np.empty(400, np.int64)
    groups[order] = np.arange(400) // 40  # images with the same mistakes share a group
    together = CurveErrors(errors.sizes, errors.wrong, errors.truth, groups)
    grouped = fit_curve(together, seed=0).projected
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_without_mistakes_none_are_projected() -> None:
    errors, _, _ = simulated(0)
    none = CurveErrors(errors.sizes, np.zeros_like(errors.wrong), errors.truth, errors.groups)
    fit = fit_curve(none, seed=0)
    assert (fit.projected.value, fit.gain.value) == (0, 0)
