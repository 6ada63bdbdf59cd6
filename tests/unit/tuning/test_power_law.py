"""Tests of power-law fits, against scipy's bounded least squares."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.tuning.power_law import fit_power_laws

SIZES = np.geomspace(1 / 16, 1, 8)


def law(floor: float, scale: float, exponent: float) -> NDArray[np.float64]:
    return np.asarray(floor + scale * SIZES**-exponent)


@pytest.mark.parametrize("known", [(0.05, 0.1, 0.5), (0.0, 0.2, 0.3), (0.3, 0.01, 1.0)])
def test_a_curve_without_noise_gives_its_own_law(known: tuple[float, float, float]) -> None:
    fit = fit_power_laws(SIZES, law(*known)[None])
    found = [fit.floor[0], fit.scale[0], fit.exponent[0]]
    assert found == pytest.approx(known, abs=2e-3)
    assert fit.at(2.0)[0] == pytest.approx(known[0] + known[1] * 2 ** -known[2], abs=1e-4)


def test_no_fit_of_scipy_is_closer() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(0)
    curves = np.stack(
        [
            law(generator.uniform(0, 0.3), generator.uniform(0, 0.3), generator.uniform(0, 1.3))
            + generator.normal(scale=generator.choice([0.001, 0.01, 0.05]), size=len(SIZES))
            for _ in range(40)
        ]
    )
    ours = fit_power_laws(SIZES, curves)
    for number, curve in enumerate(curves):

        def residuals(point: NDArray[np.float64], curve: NDArray[np.float64] = curve) -> object:
            return point[0] + point[1] * SIZES ** -point[2] - curve

        fits = [
            optimize.least_squares(residuals, start, bounds=([0, 0, 0], [np.inf, np.inf, 1]))
            for start in ([0.1, 0.1, 0.5], [0.01, 0.2, 0.1], [0.1, 0.01, 0.9])
        ]
        best = min(2 * fit.cost / len(SIZES) for fit in fits)
        assert ours.loss[number] <= best * (1 + 1e-4) + 1e-10


@pytest.mark.parametrize("curve", [np.full(8, 0.2), np.zeros(8), np.linspace(0.1, 0.3, 8)])
def test_an_error_that_does_not_fall_stays_at_its_mean(curve: NDArray[np.float64]) -> None:
    fit = fit_power_laws(SIZES, curve[None])
    assert fit.at(2.0)[0] == pytest.approx(curve.mean())
