"""Tests of out-of-fold probabilities, against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from finetune.core.reporter import SilentReporter
from finetune.data.splits.folds import Fold, make_folds
from finetune.tuning.out_of_fold import fitted_head, out_of_fold


def drawn(seed: int) -> tuple[Tensor, Tensor, tuple[Fold, ...]]:
    """Features around a centre for each of three classes, and five folds."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 6, generator=generator)
    features = 5 + centres[labels] + torch.randn(60, 6, generator=generator)
    names = [str(number) for number in range(60)]
    return features, labels, make_folds(labels.tolist(), names, (), 5, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_those_of_scikit_learn_on_the_same_folds(seed: int) -> None:
    features, labels, folds = drawn(seed)
    found = out_of_fold(
        features, labels, folds, num_classes=3, reporter=SilentReporter(), penalties=(1.0, 0.1)
    )
    expected = torch.zeros(60, 3)
    for fold in folds:
        known, other = list(fold.train), list(fold.held_out)
        head = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=1 / (len(known) * found.penalty), max_iter=5000, tol=1e-7),
        ).fit(features[known].numpy(), labels[known].numpy())
        expected[other] = torch.from_numpy(head.predict_proba(features[other].numpy())).float()
    assert found.held_out.all()
    assert torch.allclose(found.probabilities, expected, atol=0.02)


def test_the_penalty_has_the_lowest_held_out_loss() -> None:
    features, labels, folds = drawn(0)

    def loss(*penalties: float) -> tuple[float, float]:
        found = out_of_fold(
            features, labels, folds, num_classes=3, reporter=SilentReporter(), penalties=penalties
        )
        true = found.probabilities[torch.arange(60), labels]
        return -float(true.log().mean()), found.penalty

    losses = {penalty: loss(penalty)[0] for penalty in (30.0, 0.3, 0.0001)}
    assert loss(30.0, 0.3, 0.0001)[1] == min(losses, key=losses.__getitem__)


def test_an_image_that_is_never_held_out_is_reported() -> None:
    features, labels, _ = drawn(0)
    labels[7] = 3
    folds = make_folds(labels.tolist(), [str(n) for n in range(60)], (), 5, seed=0)
    found = out_of_fold(features, labels, folds, num_classes=4, reporter=SilentReporter())
    assert (~found.held_out).nonzero().tolist() == [[7]]
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(60), atol=1e-5)


def test_a_fitted_head_standardises_its_inputs() -> None:
    features, labels, _ = drawn(1)
    standardised, layer = fitted_head(features, labels, num_classes=3, penalty=0.05)
    expected = LogisticRegression(C=1 / (60 * 0.05), max_iter=5000, tol=1e-7)
    inputs = ((features - features.mean(dim=0)) / features.std(dim=0)).numpy()
    shares = expected.fit(inputs, labels.numpy()).predict_proba(inputs)
    found = layer(standardised(features)).softmax(dim=1)
    assert torch.allclose(found, torch.from_numpy(shares).float(), atol=0.01)
