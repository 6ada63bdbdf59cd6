"""Multinomial logistic regression with L2 penalty, fitted by L-BFGS over a path of penalties."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.core.reporter import Reporter
from finetune.features.source import FeatureBatches
from finetune.results.tuning import LogisticBaseline
from finetune.tuning.cross_validation import HELD_OUT_BATCH, CrossValidation, FoldData

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_MOST_PRODUCTS = 200_000_000
"""Most images times features times classes for a baseline, which then takes a few seconds."""
_MOST_STEPS = 60
_CLOSE_ENOUGH = 1e-4
_HISTORY = 10


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each feature, of shape ``(D,)``."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardisation:
        """Fit to features ``(N, D)``; a constant feature becomes 0."""
        return cls(features.mean(dim=0), features.std(dim=0).clamp_min(1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


def fit_path(
    features: Tensor, labels: Tensor, *, num_classes: int, penalties: Sequence[float]
) -> Iterator[nn.Linear]:
    """Yield the classifier of each penalty, each fit starting from the previous one.

    Minimises the mean cross-entropy plus half the penalty times the squared norm of the weights;
    the bias has no penalty. scikit-learn's ``LogisticRegression(C=1 / (N * penalty))`` minimises
    the same function of three classes or more; of two, it has one row of weights, which corresponds
    to twice the penalty.

    Args:
        features: Features ``(N, D)`` float32, which should be standardised.
        labels: Class indices ``(N,)`` int64.
        penalties: Penalties, from the largest to the smallest: the path is then fast to follow.
    """
    layer = nn.Linear(features.shape[1], num_classes, device=features.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for penalty in penalties:
        _fit(layer, features, labels, penalty)
        fitted = nn.Linear(features.shape[1], num_classes, device=features.device)
        fitted.load_state_dict(layer.state_dict())
        yield fitted.requires_grad_(False)


def _fit(layer: nn.Linear, features: Tensor, labels: Tensor, penalty: float) -> None:
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=_MOST_STEPS,
        history_size=_HISTORY,
        tolerance_grad=_CLOSE_ENOUGH,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = F.cross_entropy(layer(features), labels)
        value = entropy + penalty / 2 * layer.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def logistic_baseline(cv: CrossValidation, reporter: Reporter) -> LogisticBaseline | None:
    """Cross-validate logistic regression on the folds of a search, without augmentation.

    Returns:
        The penalty with the best mean accuracy; of equals, the largest. None without folds or
        cached features, if the features of an image are several tensors, or if it would take long.
    """
    if not cv.folds or not cv.kept or len(cv.engine.extractor.crossing) != 1:
        return None
    size = torch.Size(cv.engine.extractor.crossing[0]).numel()
    if len(cv.train) * size * cv.num_classes > _MOST_PRODUCTS:
        return None
    tracked = reporter.track(cv.fold_data(), "logistic regression", total=len(cv.folds))
    shares = [_accuracies(fold) for fold in tracked]
    means = [statistics.fmean(each) for each in zip(*shares, strict=True)]
    best = max(range(len(means)), key=means.__getitem__)
    return LogisticBaseline(means[best], PENALTIES[best])


def _accuracies(fold: FoldData) -> list[float]:
    """Return the accuracy on a fold's held-out images for each penalty."""
    plain = fold.cv.part(fold.positions, batch_size=HELD_OUT_BATCH, training=False)
    features, labels = _rows_of(plain)
    others, truth = _rows_of(fold.held_out)
    standardised = Standardisation.of(features)
    path = fit_path(
        standardised(features),
        labels,
        num_classes=fold.cv.num_classes,
        penalties=PENALTIES,
    )
    others = standardised(others)
    return [float((layer(others).argmax(dim=1) == truth).float().mean()) for layer in path]


def _rows_of(batches: FeatureBatches) -> tuple[Tensor, Tensor]:
    """Return all features ``(N, D)`` and labels ``(N,)``."""
    found = list(batches.epoch())
    features = torch.cat([tensors[0] for tensors, _ in found])
    return features.flatten(1), torch.cat([labels for _, labels in found])
