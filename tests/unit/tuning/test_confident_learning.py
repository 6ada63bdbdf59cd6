"""Tests of confident learning, against cleanlab where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from finetune.core.reporter import SilentReporter
from finetune.data.splits.folds import Fold, make_folds
from finetune.tuning.confident_learning import (
    judge_labels,
    label_quality,
    neighbour_shares,
    with_conflicts,
)

Labels = NDArray[np.int64]


def drawn(
    seed: int, *, similar: bool = False
) -> tuple[NDArray[np.float64], Labels, NDArray[np.bool_]]:
    """Probabilities that are mostly of the true class, and labels of which a tenth is wrong.

    Args:
        similar: Whether each class is mistaken for one other class, instead of for any.
    """
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 8))
    true = rng.integers(0, num_classes, 300)
    logits = rng.normal(size=(300, num_classes)) + rng.uniform(1, 3) * np.eye(num_classes)[true]
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = true.copy()
    wrong = rng.random(300) < 0.1
    other = 1 if similar else rng.integers(1, num_classes, wrong.sum())
    labels[wrong] = (true[wrong] + other) % num_classes
    return probabilities, labels, labels != true


@pytest.mark.parametrize("seed", range(40))
def test_the_confident_joint_is_cleanlabs(seed: int) -> None:
    count = pytest.importorskip("cleanlab.count", reason="cleanlab is not installed")
    probabilities, labels, _ = drawn(seed)
    quality = label_quality(probabilities, labels)
    expected = count.get_confident_thresholds(labels, probabilities)
    assert np.allclose(quality.thresholds, expected, atol=1e-6)
    # Where several classes are above their thresholds, cleanlab takes the most probable of all
    # classes; the paper, and this, the most probable of these.
    above = probabilities >= quality.thresholds - 1e-6
    same = above[np.arange(300), probabilities.argmax(axis=1)] | (above.sum(axis=1) < 2)
    joint = label_quality(probabilities, labels).joint
    other = count.compute_confident_joint(labels, probabilities, calibrate=False)
    # cleanlab counts at least one image of each class as right.
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    assert np.abs(joint - other).sum() <= 2 * (~same).sum()
    assert np.array_equal(joint.sum(axis=1), other.sum(axis=1))


@pytest.mark.parametrize("method", ["self_confidence", "normalized_margin"])
def test_the_ranking_is_not_below_cleanlabs(method: str) -> None:
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed")
    gained: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(60):
        probabilities, labels, wrong = drawn(seed, similar=seed % 2 == 1)
        scores = rank.get_label_quality_scores(labels, probabilities, method=method)
        ours = average_precision_score(wrong, label_quality(probabilities, labels).score)
        gained[seed % 2 == 1].append(ours - average_precision_score(wrong, 1 - scores))
    assert np.mean(gained[True]) > 0.01
    # If all errors are equally frequent, the probability of the label is the best ranking.
    assert np.mean(gained[False]) > -0.005


def test_a_class_that_is_hard_to_tell_apart_needs_a_lower_probability() -> None:
    # Images of class 0 have a probability of 0.9 for it, those of class 1 and 2 one of 0.4.
    probabilities = np.array(
        [[0.9, 0.05, 0.05]] * 8 + [[0.3, 0.4, 0.3]] * 8 + [[0.3, 0.3, 0.4]] * 8
    )
    labels = np.repeat(np.arange(3), 8)
    labels[23] = 0  # has 0.4 for its true class
    quality = label_quality(probabilities, labels)
    assert np.flatnonzero(quality.is_suspected).tolist() == [23]
    assert quality.suggested[23] == 2
    assert quality.joint[0, 2] == 1


def test_a_class_without_images_is_never_suggested() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]])
    quality = label_quality(probabilities, np.array([0, 0, 1]))
    assert not quality.is_suspected[quality.suggested == 2].any()


def test_neighbours_of_the_same_group_say_nothing() -> None:
    near = np.array([[1, 2], [0, 2], [0, 1]])
    shares = neighbour_shares(near, np.array([0, 0, 1]), ["a", "a", "b"], 2)
    assert shares.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert np.isnan(neighbour_shares(near, np.array([0, 0, 1]), ["a"] * 3, 2)).all()


def clusters() -> tuple[Tensor, Labels, Labels, tuple[Fold, ...]]:
    """Features of three classes, labels of which some are wrong, the true ones, and folds."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(150) % 3
    features = 6 * torch.eye(3, 8)[true] + torch.randn(150, 8, generator=generator)
    labels = true.numpy().copy()
    labels[:12] = (labels[:12] + 1) % 3
    folds = make_folds(labels.tolist(), [str(at) for at in range(150)], (), 5, seed=0)
    return features, labels, true.numpy(), folds


NO_SHARES = np.full((150, 3), np.nan)


def test_planted_errors_are_suspected_with_their_true_class() -> None:
    features, labels, true, folds = clusters()
    judged = judge_labels(features, labels, folds, NO_SHARES, reporter=SilentReporter())
    first = np.argsort(-judged.quality.score)[:12]
    assert (first < 12).sum() >= 11
    found = judged.quality.is_suspected
    assert found[12:].sum() <= 1
    chosen = np.flatnonzero(found[:12])
    assert len(chosen) >= 9
    assert np.array_equal(judged.quality.suggested[chosen], true[chosen])
    assert judged.accuracy(true) > 0.9


def test_what_the_neighbours_say_counts() -> None:
    features, labels, true, folds = clusters()
    shares = np.eye(3)[true]
    alone = judge_labels(features, labels, folds, NO_SHARES, reporter=SilentReporter())
    judged = judge_labels(features, labels, folds, shares, reporter=SilentReporter())
    at = np.arange(150)
    assert (judged.probabilities[at, true] >= alone.probabilities[at, true] - 0.1).all()
    assert judged.probabilities[at, true].mean() > alone.probabilities[at, true].mean()


def test_an_image_that_is_never_held_out_is_not_suspected() -> None:
    features, labels, _, _ = clusters()
    labels[149] = 3
    folds = make_folds(labels.tolist(), [str(at) for at in range(150)], (), 5, seed=0)
    shares = np.full((150, 4), np.nan)
    judged = judge_labels(features, labels, folds, shares, reporter=SilentReporter())
    assert np.flatnonzero(~judged.held_out).tolist() == [149]
    assert not judged.quality.is_suspected[149]


def test_equal_images_with_two_labels_are_suspected_first() -> None:
    features, labels, true, folds = clusters()
    labels[100] = (true[100] + 1) % 3
    features[100] = features[103] = 0  # the heads know nothing about them
    judged = judge_labels(features, labels, folds, NO_SHARES, reporter=SilentReporter())
    found = with_conflicts(judged, labels, [[100, 103], [20, 23]]).quality
    assert found.is_suspected[[100, 103]].sum() == 1
    wrong = 100 if found.is_suspected[100] else 103
    assert found.score[wrong] == 1 > np.delete(found.score, wrong).max()
    assert found.suggested[wrong] == labels[203 - wrong]
    assert np.array_equal(found.is_suspected[[20, 23]], judged.quality.is_suspected[[20, 23]])
