"""Temperature scaling: calibrate probabilities by dividing logits by a fitted temperature."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST, LARGEST = 0.05, 20.0
"""Bounds of the temperature. If all images are classified correctly, the best temperature is 0,
and every probability would be 0 or 1."""


def probabilities(logits: Tensor, temperature: float | None) -> Tensor:
    """Softmax of logits ``(N, classes)`` in float32, divided by the temperature unless it is None.

    All displayed probabilities are computed here, so that the same logits give the same bits.
    """
    logits = logits.float()
    return torch.softmax(logits if temperature is None else logits / temperature, dim=1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature that minimizes cross-entropy, by LBFGS.

    See Guo et al. 2017, On Calibration of Modern Neural Networks.

    Args:
        logits: Logits ``(N, classes)``.
        labels: True class indices ``(N,)``, int64.
    """
    logits = logits.detach().cpu().double()
    labels = labels.cpu()
    low, high = math.log(SMALLEST), math.log(LARGEST)
    # The logarithm is optimized, so that the temperature stays positive.
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        bounded = log.clamp(low, high)
        # The penalty gives a gradient outside the bounds, where that of the clamp is zero.
        value = F.cross_entropy(logits / bounded.exp(), labels) + (log - bounded).square()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log.detach().clamp(low, high).exp())
