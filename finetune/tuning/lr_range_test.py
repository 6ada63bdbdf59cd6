"""Learning-rate range test (Smith 2017), with exponentially increasing learning rates."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.optim.lr_scheduler import LambdaLR

from finetune.core.errors import NotFiniteError
from finetune.core.reporter import Reporter
from finetune.features.source import FeatureBatch, FeatureBatches
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.prepare_stage import StageSetup

WIDTH = 0.25
"""Width of the smoothing kernel, in decades of the learning rate."""

RULE = (
    "where the smoothed loss falls most steeply over the rate's logarithm, left of its lowest point"
)


@dataclass(frozen=True)
class LrCurve:
    """Smoothed loss curve of a range test.

    Attributes:
        smoothed: Smoothed loss at each learning rate.
        lowest: Learning rate of the lowest smoothed loss.
        steepest: Suggested learning rate; None if the loss rises from the start.
    """

    smoothed: tuple[float, ...]
    lowest: float
    steepest: float | None


def exponential_rates(low: float, high: float, steps: int) -> list[float]:
    """Return learning rates from ``low`` to ``high``, evenly spaced on a logarithmic scale."""
    rates: list[float] = np.geomspace(low, high, steps).tolist()
    return rates


def lr_curve(rates: Sequence[float], losses: Sequence[float]) -> LrCurve:
    """Smooth the losses and suggest the learning rate of the steepest descent.

    The smoothing is local linear regression (Cleveland 1979), which also gives the slope and has no
    lag. The rule is that of `lr_find` in fastai (Howard and Gugger 2020) and in Lightning, on
    Smith's range test (2017).

    Args:
        rates: Learning rates in ascending order.
        losses: Finite loss at each learning rate.
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
    """Return value and slope, at each point, of the line fitted to its neighbourhood."""
    apart = x[None, :] - x[:, None]
    weights = np.exp(-0.5 * (apart / WIDTH) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    first, second = (weights * apart).sum(axis=1), (weights * apart**2).sum(axis=1)
    height, product = weights @ y, (weights * apart) @ y
    spread = second - first**2
    slopes = np.divide(product - first * height, spread, out=np.zeros_like(y), where=spread > 1e-12)
    return height - slopes * first, slopes


_MEMORY = 0.9
"""Decay of the running mean of the loss, per step."""

_DIVERGED = 4.0
"""Ratio of the running mean to its minimum that ends the test (fastai; Howard and Gugger)."""


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
        losses: Finite loss of each step.
        ended_at: Learning rate of the step that ended the test early; None if it was completed.
    """

    losses: tuple[float, ...]
    ended_at: float | None


def range_test(
    stage_setup: StageSetup, batches: FeatureBatches, rates: Sequence[float], reporter: Reporter
) -> RangeTest:
    """Train one step at each learning rate and return the losses.

    The steps are those of a training of this stage; the weights of its trainable part are restored
    afterwards.

    Args:
        rates: Learning rate of each step; parameter groups keep the ratios of theirs.
    """
    config, trainable_part = stage_setup.config, stage_setup.engine.trainable_part
    first = OrderedDict(
        (name, t.detach().clone()) for name, t in trainable_part.state_dict().items()
    )
    optimizer = stage_setup.optimizer_of(config.optimizer)
    schedule = LambdaLR(
        optimizer, lambda step: rates[min(step, len(rates) - 1)] / config.optimizer.lr
    )
    steps = _endless(batches, config.train.accumulate)
    trained = train_epochs(
        LoopState(trainable_part, optimizer, schedule, stage_setup.plan.num_classes),
        lambda _: next(steps),  # one step per epoch, to get the loss of each step
        epochs=len(rates),
        step=stage_setup.step,
        loss=stage_setup.loss,
        callbacks=Callbacks(stage_setup.set_mode),
    )
    losses: list[float] = []
    ended_at = None
    mean, lowest = 0.0, math.inf
    try:
        for at, step in enumerate(reporter.track(trained, "range test", total=len(rates))):
            if not math.isfinite(step.loss):
                ended_at = rates[at]
                break
            losses.append(step.loss)
            mean = _MEMORY * mean + (1 - _MEMORY) * step.loss
            so_far = mean / (1 - _MEMORY ** len(losses))
            lowest = min(lowest, so_far)
            if so_far > _DIVERGED * lowest:
                ended_at = rates[at]
                break
    except NotFiniteError:  # raised before the step was taken; it also ends the test
        ended_at = rates[len(losses)]
    finally:
        trainable_part.load_state_dict(first)
    return RangeTest(tuple(losses), ended_at)


def _endless(batches: FeatureBatches, accumulate: int) -> Iterator[list[FeatureBatch]]:
    """Yield the batches of each step without end; an epoch's last step may have fewer."""
    for epoch in itertools.count(1):
        left = iter(batches.epoch(epoch))
        while step := list(itertools.islice(left, accumulate)):
            yield step
