"""One number that makes probabilities honest: logits divided by a fitted temperature."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST, LARGEST = 0.05, 20.0
"""Bounds: on images that are all recognised the best temperature is 0, which would call every
later image certain."""


def probabilities(logits: Tensor, temperature: float | None) -> Tensor:
    """Softmax of logits ``(N, classes)`` in float32, cooled where a temperature was fitted.

    Everything that shows a probability takes it from here: the same logits give the same bits.
    """
    logits = logits.float()
    return torch.softmax(logits if temperature is None else logits / temperature, dim=1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017, On Calibration of Modern Neural
    Networks), found by LBFGS.

    Args:
        logits: ``(N, classes)``.
        labels: ``(N,)`` int64.
    """
    logits = logits.detach().cpu().double()
    labels = labels.cpu()
    low, high = math.log(SMALLEST), math.log(LARGEST)
    # Its logarithm is what moves: a temperature stays positive.
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        bounded = log.clamp(low, high)
        # Outside the bounds a slope back, since the clamp has none.
        value = F.cross_entropy(logits / bounded.exp(), labels) + (log - bounded).square()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log.detach().clamp(low, high).exp())
