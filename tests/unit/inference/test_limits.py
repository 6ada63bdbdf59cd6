"""Tests of the limits of answers: the distance, its limit, and prediction sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.checkpoints.limits import Limits, LimitsRecord
from finetune.core.errors import CheckpointError
from finetune.inference.limits import (
    MOST_TRAINING,
    RATE,
    Distance,
    fit_limits,
    has_limit,
    least_images,
    prediction_sets,
    set_threshold,
    spread_over_classes,
)

WIDTH, CLASSES = 40, 3


def rows(count: int, seed: int, *, apart: float = 0.0) -> tuple[Tensor, Tensor]:
    """Embeddings around class means, with a covariance of few directions, and their classes."""
    draws = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(0)
    means = torch.rand(CLASSES, WIDTH, generator=world) + 0.5
    mixing = torch.randn(4, WIDTH, generator=world) / 4
    labels = torch.randint(CLASSES, (count,), generator=draws)
    noise = torch.randn(count, 4, generator=draws) @ mixing
    noise = noise + 0.1 * torch.randn(count, WIDTH, generator=draws)
    unlike = apart * torch.randn(count, WIDTH, generator=draws)
    return means[labels] + noise + unlike, labels


def fitted(seed: int = 0, images: int = 200) -> Limits:
    training, of_training = rows(300, seed)
    validation, labels = rows(images, seed + 1)
    shares = torch.rand(images, CLASSES, generator=torch.Generator().manual_seed(seed))
    return fit_limits(training, of_training, validation, F.normalize(shares, p=1, dim=1), labels)


def reference(training: Tensor, labels: Tensor, found: Tensor) -> np.ndarray:
    """The distance of probabilistic principal components with the inverse written out."""
    unit = F.normalize(training.double(), dim=1).numpy()
    means = np.stack([unit[labels.numpy() == at].mean(0) for at in range(CLASSES)])
    within = unit - means[labels.numpy()]
    values, vectors = np.linalg.eigh(within.T @ within / len(unit))
    kept = vectors[:, -16:]
    rest = values[:-16].mean()
    covariance = rest * np.eye(WIDTH) + kept @ np.diag(values[-16:] - rest) @ kept.T
    inverse = np.linalg.inv(covariance)
    apart = F.normalize(found.double(), dim=1).numpy()[:, None] - means
    squared: np.ndarray = np.einsum("ncd,de,nce->nc", apart, inverse, apart).min(axis=1)
    return np.sqrt(squared)


def test_the_distance_is_that_of_the_covariance_written_out() -> None:
    training, labels = rows(300, 0)
    found = torch.cat([rows(50, 5)[0], rows(50, 6, apart=2.0)[0]])
    ours = Distance(fitted())(found).double().numpy()
    theirs = reference(training, labels, found)
    assert ours / theirs == pytest.approx(np.full(100, (ours / theirs)[0]), rel=1e-3)


def test_fewer_photos_than_values_give_the_same_distance() -> None:
    training, labels = rows(30, 0)
    shares = torch.full((200, CLASSES), 1 / CLASSES)
    validation, of_validation = rows(200, 1)
    ours = Distance(fit_limits(training, labels, validation, shares, of_validation))(validation)
    theirs = reference(training, labels, validation)
    assert ours.double().numpy() / theirs == pytest.approx(
        np.full(200, float(ours[0]) / theirs[0]), rel=1e-3
    )


def test_the_false_alarm_rate_holds_on_new_rows() -> None:
    shares = [
        float(
            (Distance(fitted(10 * seed, images=99))(rows(500, 10 * seed + 5)[0]) > 1).float().mean()
        )
        for seed in range(60)
    ]
    assert np.mean(shares) == pytest.approx(RATE, abs=0.01)
    assert np.mean(shares) <= RATE + 0.005


def test_rows_unlike_the_training_rows_are_beyond_the_limit() -> None:
    assert bool((Distance(fitted())(rows(100, 7, apart=2.0)[0]) > 1).all())


def test_a_share_of_the_calibration_rows_is_beyond_the_limit() -> None:
    beyond = Distance(fitted(images=199))(rows(199, 1)[0]) > 1
    assert int(beyond.sum()) == 9  # of 199, the 10th largest distance is the limit


def test_one_photo_a_class_gives_finite_distances() -> None:
    training, labels = torch.rand(CLASSES, WIDTH), torch.arange(CLASSES)
    validation, of_validation = rows(40, 1)
    shares = torch.full((40, CLASSES), 1 / CLASSES)
    limits = fit_limits(training, labels, validation, shares, of_validation)
    assert bool(torch.isfinite(Distance(limits)(validation)).all())


@pytest.mark.parametrize(
    ("share", "images"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)]
)
def test_a_share_needs_so_many_photos(share: float, images: int) -> None:
    assert least_images(share) == images


def test_too_few_validation_photos_give_no_limit() -> None:
    assert not has_limit(fitted(images=18).record)
    assert has_limit(fitted(images=19).record)


def of_shares(shares: Tensor) -> Limits:
    one = torch.zeros(1)
    record = LimitsRecord(rate=RATE, training_images=1, images=len(shares))
    return Limits(record, one, one[0], one[None], one[None], one, shares.sort().values)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("images", [19, 50, 133])
def test_sets_cover_new_photos_as_often_as_stated(coverage: float, images: int) -> None:
    draws = torch.Generator().manual_seed(images)
    covered = []
    for _ in range(400):
        logits = 2 * torch.randn(images + 200, 10, generator=draws)
        shares = logits.softmax(dim=1)
        labels = torch.multinomial(shares, 1, generator=draws)
        of_true = shares.gather(1, labels)[:images, 0]
        threshold = set_threshold(of_shares(of_true), coverage)
        sets = prediction_sets(shares[images:], threshold)
        covered.append(float(sets.gather(1, labels[images:]).float().mean()))
    least = np.mean(covered) + 3 * np.std(covered) / np.sqrt(len(covered))
    assert least >= coverage
    if coverage >= 0.8:  # below, sets of the most probable class alone cover more
        assert np.mean(covered) <= coverage + 1 / (images + 1) + 0.03


def test_the_threshold_is_the_order_statistic_of_split_conformal_prediction() -> None:
    shares = torch.linspace(0.01, 0.99, 99)
    assert set_threshold(of_shares(shares), 0.9) == pytest.approx(0.10)
    assert set_threshold(of_shares(shares), 0.99) == pytest.approx(0.01)


def test_the_most_probable_class_is_always_in_the_set() -> None:
    sets = prediction_sets(torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]), 0.8)
    assert sets.tolist() == [[True, False, False], [True, False, False]]


def test_a_coverage_that_needs_more_photos_is_refused() -> None:
    with pytest.raises(CheckpointError, match="18 validation photos are too few"):
        set_threshold(of_shares(torch.rand(18)), 0.95)


def test_the_training_photos_are_spread_over_the_classes() -> None:
    labels = [0] * 5_000 + [1] * 20 + [2] * 1_000
    at = spread_over_classes(labels, 3)
    counts = np.bincount(np.array(labels)[at]).tolist()
    assert counts == [MOST_TRAINING // 3, 20, MOST_TRAINING // 3]
    assert at[0] == 0
    assert at[MOST_TRAINING // 3 - 1] > 4_900
