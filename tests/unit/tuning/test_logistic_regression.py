"""Tests of logistic regression by L-BFGS, against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from finetune.tuning.logistic_regression import fit_path

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
