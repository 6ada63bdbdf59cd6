"""Tests of confidence intervals and paired tests against scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from finetune.inference.confidence_intervals import (
    Sample,
    _figures,
    auroc,
    bootstrap,
    holm,
    mcnemar,
    wilson,
)


@pytest.mark.parametrize(("right", "images"), [(0, 5), (5, 5), (148, 153), (1, 1), (9_999, 10_000)])
def test_wilson_is_scipys(right: int, images: int) -> None:
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    ours = wilson(right, images)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_knows_nothing_without_images() -> None:
    assert wilson(0, 0) is None


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (4, 3), (10, 1), (30, 60), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(one: int, other: int) -> None:
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, abs=1e-12)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.5]) == pytest.approx([0.08, 0.03, 0.5])
    assert holm([0.02, 0.015]) == pytest.approx([0.03, 0.03])


def sample_of(true: list[int], scores: np.ndarray, groups: list[int] | None = None) -> Sample:
    labels = np.array(true)
    predicted = scores.argmax(axis=1)
    confidence = scores.max(axis=1)
    return Sample(
        true=labels,
        predicted=predicted,
        num_classes=scores.shape[1],
        loss=-np.log(scores[np.arange(len(labels)), labels]),
        in_top5=None,
        bins=np.minimum((confidence * 15).astype(np.int64), 14),
        gap=confidence - (predicted == labels),
        scores=scores,
        groups=None if groups is None else np.array(groups),
    )


def noisy(images: int, classes: int = 3) -> Sample:
    generator = np.random.default_rng(1)
    true = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), true] += 1.5
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return sample_of(true.tolist(), shares)


def test_resampled_figures_are_those_of_the_images_that_were_drawn() -> None:
    sample = noisy(60)
    drawn = np.random.default_rng(2).integers(0, 60, 60)
    weights = np.bincount(drawn, minlength=60).astype(float)
    figures = _figures(sample)
    true, predicted = sample.true[drawn], sample.predicted[drawn]
    assert sample.scores is not None
    assert figures["balanced_accuracy"](weights) == pytest.approx(
        balanced_accuracy_score(true, predicted)
    )
    assert figures["macro_f1"](weights) == pytest.approx(f1_score(true, predicted, average="macro"))
    assert figures["auroc"](weights) == pytest.approx(
        roc_auc_score(true, sample.scores[drawn], multi_class="ovr", average="macro")
    )


def test_the_auroc_counts_ties_as_half() -> None:
    scores = np.round(noisy(80).scores, 1)
    true = noisy(80).true
    ours = auroc(scores, true)
    expected = [roc_auc_score(true == label, scores[:, label]) for label in range(3)]
    assert ours == pytest.approx(np.mean(expected))


def test_bootstrap_holds_the_figure_and_narrows_with_more_images() -> None:
    few, many = bootstrap(noisy(100)), bootstrap(noisy(2000))
    for name in ("top1", "balanced_accuracy", "macro_f1", "loss", "auroc", "calibration_error"):
        assert few[name].low < few[name].high
        width = few[name].high - few[name].low
        assert many[name].high - many[name].low < width / 2
    figure = _figures(noisy(100))["macro_f1"](np.ones(100))
    assert few["macro_f1"].low < figure < few["macro_f1"].high


def honest(seed: int, images: int = 150, classes: int = 4) -> Sample:
    """Labels drawn from the probabilities themselves, so that only chance makes an error."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(images, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (generator.random((images, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    return replace(sample_of(true.clip(0, classes - 1).tolist(), shares), scores=None)


@pytest.mark.parametrize("seed", range(12))
def test_the_interval_of_a_calibration_error_holds_the_error(seed: int) -> None:
    sample = honest(seed)
    error = _figures(sample)["calibration_error"](np.ones(len(sample)))
    interval = bootstrap(sample)["calibration_error"]
    assert 0 <= interval.low < error < interval.high <= 1


def test_bootstrap_is_seeded() -> None:
    assert bootstrap(noisy(50)) == bootstrap(noisy(50))
    assert bootstrap(noisy(50)) != bootstrap(noisy(50), seed=1)


def test_groups_of_images_that_are_alike_widen_the_interval() -> None:
    # Ten copies of each of twenty images say no more than twenty images.
    twenty = noisy(20)
    assert twenty.scores is not None
    true = np.repeat(twenty.true, 10).tolist()
    scores = np.repeat(twenty.scores, 10, axis=0)
    alone = bootstrap(sample_of(true, scores))["top1"]
    grouped = bootstrap(sample_of(true, scores, np.repeat(np.arange(20), 10).tolist()))["top1"]
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.3)


def test_a_perfect_score_has_no_interval_rather_than_one_without_width() -> None:
    scores = np.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4)
    intervals = bootstrap(sample_of([0] * 4 + [1] * 4, scores))
    assert "balanced_accuracy" not in intervals
    assert "top1" not in intervals
