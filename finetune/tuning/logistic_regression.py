"""Multinomial logistic regression with L2 penalty, fitted by L-BFGS over a path of penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_STEPS = 60
_CLOSE_ENOUGH = 1e-4
_HISTORY = 10


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
