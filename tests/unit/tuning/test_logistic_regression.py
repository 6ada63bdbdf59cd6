"""Tests of logistic regression by L-BFGS, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers.photos import draw_photos
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.training.prepare_stage import prepare_single_stage
from finetune.tuning import logistic_regression
from finetune.tuning import search as search_module
from finetune.tuning.cross_validation import CrossValidation
from finetune.tuning.logistic_regression import fit_path, logistic_baseline

PENALTIES = (1.0, 0.1, 0.01)


@pytest.mark.parametrize("seed", range(4))
def test_each_classifier_of_the_path_is_that_of_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, dimensions, classes = 120, 8 + 4 * seed, 2 + seed
    features = torch.randn(count, dimensions, generator=generator)
    scores = features @ torch.randn(dimensions, classes, generator=generator)
    noise = torch.randn(count, classes, generator=generator)
    labels = torch.arange(count) % classes
    labels = torch.where(torch.arange(count) < classes, labels, (scores + noise).argmax(dim=1))
    path = fit_path(features, labels, num_classes=classes, penalties=PENALTIES)
    for penalty, layer in zip(PENALTIES, path, strict=True):
        # For two classes, scikit-learn has one row of weights: the difference of two.
        strength = count * penalty / (2 if classes == 2 else 1)
        other = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-7)
        expected = other.fit(features.numpy(), labels.numpy()).predict_proba(features.numpy())
        found = layer(features)
        assert torch.allclose(found.softmax(dim=1), torch.from_numpy(expected).float(), atol=0.01)


def test_a_larger_penalty_gives_smaller_weights() -> None:
    features, labels = torch.randn(60, 5), torch.arange(60) % 3
    norms = [
        float(layer.weight.norm())
        for layer in fit_path(features, labels, num_classes=3, penalties=PENALTIES)
    ]
    assert norms == sorted(norms)


Make = Callable[..., Config]


def cross_validation(make_config: Make, tmp_path: Path, folds: int) -> CrossValidation:
    """Three classes of which two look alike."""
    draw_photos(tmp_path / "more" / "train", count=12, classes=3)
    draw_photos(tmp_path / "more" / "val", count=2, classes=3)
    fixed = {"precision": "float32", "memory_format": "contiguous"}
    config = make_config(
        model={"weights": "bundled"},
        data={"root": str(tmp_path / "more")},
        runtime=fixed,
        tune={"folds": folds},
    )
    stage_setup = prepare_single_stage(config, SilentReporter(), what="test")
    parts = search_module.folds_of(stage_setup.config, stage_setup.data)
    return search_module._cross_validation(stage_setup, parts, SilentReporter())


def test_the_baseline_is_that_of_scikit_learn_on_the_same_folds(
    make_config: Make, tmp_path: Path
) -> None:
    cv = cross_validation(make_config, tmp_path, 3)
    found = logistic_baseline(cv, SilentReporter())
    assert found is not None
    scores = []
    for fold in cv.fold_data():
        plain = cv.part(fold.positions, batch_size=100, training=False)
        ((features,), labels), *_ = plain.epoch()
        ((others,), truth), *_ = fold.held_out.epoch()
        scale = StandardScaler().fit(features.numpy())
        strength = len(labels) * found.penalty
        judge = LogisticRegression(C=1 / strength, max_iter=5000)
        judge.fit(scale.transform(features.numpy()), labels.numpy())
        scores.append(judge.score(scale.transform(others.numpy()), truth.numpy()))
    assert found.top1 == pytest.approx(fmean(scores), abs=0.03)  # one image of 36


def test_without_folds_or_with_too_much_to_fit_there_is_no_baseline(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert logistic_baseline(cross_validation(make_config, tmp_path, 0), SilentReporter()) is None
    monkeypatch.setattr(logistic_regression, "_MOST_PRODUCTS", 100)
    assert logistic_baseline(cross_validation(make_config, tmp_path, 3), SilentReporter()) is None
