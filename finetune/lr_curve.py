"""From the losses of a learning-rate range test to a suggestion; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 0.25
"""Of the smoothing kernel, in decades of the learning rate: a rate next to it behaves alike."""

RULE = (
    "where the smoothed loss falls most steeply over the rate's logarithm, left of its lowest point"
)


@dataclass(frozen=True)
class LrCurve:
    """A smoothed range test.

    Attributes:
        smoothed: At each rate.
        lowest: The rate of the lowest smoothed loss.
        steepest: The suggestion; None where the loss rises from the start.
    """

    smoothed: tuple[float, ...]
    lowest: float
    steepest: float | None


def exponential_rates(low: float, high: float, steps: int) -> list[float]:
    """From one rate to another, each the same factor above the last."""
    rates: list[float] = np.geomspace(low, high, steps).tolist()
    return rates


def lr_curve(rates: Sequence[float], losses: Sequence[float]) -> LrCurve:
    """Smooth by local linear regression (Cleveland 1979), which gives the slope as well and lags
    on neither side, and take the steepest descent: the rule of `lr_find` in fastai (Howard and
    Gugger 2020) and in Lightning, on Smith's range test (2017).

    Args:
        rates: In ascending order.
        losses: Finite.
    """
    x = np.log10(np.asarray(rates, dtype=np.float64))
    y = np.asarray(losses, dtype=np.float64)
    smoothed, slopes = _local_lines(x, y)
    lowest = int(smoothed.argmin())
    steepest = int(slopes[: lowest + 1].argmin())
    fell = lowest > 0 and slopes[steepest] < 0
    return LrCurve(
        smoothed=tuple(smoothed.tolist()),
        lowest=float(rates[lowest]),
        steepest=float(rates[steepest]) if fell else None,
    )


def _local_lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and slope at each point of the line that fits its neighbours best."""
    apart = x[None, :] - x[:, None]
    weights = np.exp(-0.5 * (apart / WIDTH) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    first, second = (weights * apart).sum(axis=1), (weights * apart**2).sum(axis=1)
    height, product = weights @ y, (weights * apart) @ y
    spread = second - first**2
    slopes = np.divide(product - first * height, spread, out=np.zeros_like(y), where=spread > 1e-12)
    return height - slopes * first, slopes
