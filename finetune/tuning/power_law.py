"""Least-squares fits of power laws to learning curves.

Errors of classifiers fall with the number n of training images about as ``floor + scale * n **
-exponent`` (Cortes et al. 1993, Hestness et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_COARSE, _FINE, _ROUNDS = 101, 21, 3
_SINGULAR = 1e-9
"""Determinant below which the law is too straight to tell a floor."""


@dataclass(frozen=True)
class PowerLaws:
    """Several power laws of the same relative size x: ``floor + scale * x ** -exponent``.

    Attributes:
        floor, scale, exponent: Coefficients of each law, ``(R,)``; none is negative, and no
            exponent is above 1.
        loss: Mean squared residual of each law, ``(R,)``.
    """

    floor: Floats
    scale: Floats
    exponent: Floats
    loss: Floats

    def at(self, size: float) -> Floats:
        """Return the errors at a relative size, ``(R,)``."""
        return np.asarray(self.floor + self.scale * size**-self.exponent)


def fit_power_laws(sizes: Floats, errors: Floats) -> PowerLaws:
    """Fit a power law to each of several learning curves by least squares.

    For a given exponent the other coefficients have a closed form; the exponent is found on a grid
    from 0 to 1 that is refined around its minimum. All curves are fitted at once, a thousand of
    them in a tenth of a second.

    Args:
        sizes: Sizes relative to the largest one, ``(S,)``.
        errors: Errors of each curve, ``(R, S)``.
    """
    low, high = np.zeros(len(errors)), np.ones(len(errors))
    count = _COARSE
    every = np.arange(len(errors))
    for _ in range(_ROUNDS):
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, count)
        floor, scale, loss = _coefficients(sizes, errors, grid)
        best = loss.argmin(axis=1)
        found = PowerLaws(*(values[every, best] for values in (floor, scale, grid, loss)))
        step = (high - low) / (count - 1)
        low = np.clip(found.exponent - step, 0, 1)
        high = np.clip(found.exponent + step, 0, 1)
        count = _FINE
    return found


def _coefficients(sizes: Floats, errors: Floats, exponents: Floats) -> tuple[Floats, ...]:
    """Return floor, scale and loss ``(R, G)`` for the exponents ``(R, G)`` of each curve.

    Of the minimum without a bound and those on the bounds ``floor = 0`` and ``scale = 0``, the best
    that has no negative coefficient.
    """
    powers = sizes ** -exponents[..., None]
    mean, square = powers.mean(axis=2), (powers**2).mean(axis=2)
    level = errors.mean(axis=1, keepdims=True)
    product = (powers * errors[:, None]).mean(axis=2)
    spread = square - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        free = np.where(spread > _SINGULAR, (product - mean * level) / spread, 0.0)
    allowed = (free >= 0) & (level >= mean * free)
    no_floor = np.maximum(product / square, 0)
    choices = [
        (np.zeros_like(mean), no_floor),
        (np.broadcast_to(level, mean.shape), np.zeros_like(mean)),
        (np.where(allowed, level - mean * free, 0), np.where(allowed, free, no_floor)),
    ]
    floors, scales = (np.stack(some) for some in zip(*choices, strict=True))
    residuals = floors[..., None] + scales[..., None] * powers - errors[:, None]
    losses = (residuals**2).mean(axis=3)
    best = losses.argmin(axis=0)[None]
    return tuple(np.take_along_axis(all_, best, axis=0)[0] for all_ in (floors, scales, losses))
