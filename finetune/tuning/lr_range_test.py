"""Learning-rate range test (Smith 2017), with exponentially increasing learning rates."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.config.schema import Config
from finetune.core.errors import NotFiniteError
from finetune.core.reporter import Reporter
from finetune.features.source import FeatureBatch, FeatureBatches
from finetune.training.loop import train_epochs

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
    trainable_part: nn.Module,
    batches: FeatureBatches,
    rates: Sequence[float],
    *,
    config: Config,
    optimizer: Optimizer,
    set_mode: Callable[[], None],
    num_classes: int,
    class_weights: Sequence[float] | None,
    aux_weight: float,
    reporter: Reporter,
) -> RangeTest:
    """Train one step at each learning rate and return the losses.

    The weights of the trainable part are restored afterwards.

    Args:
        trainable_part: Module to train, with the same steps as in `train_epochs`.
        rates: Learning rate of each step.
        optimizer: New optimizer built from ``config``; its groups' learning rates keep their
            ratios.
        set_mode: Function that puts every module into its mode for training.
    """
    first = OrderedDict(
        (name, t.detach().clone()) for name, t in trainable_part.state_dict().items()
    )
    steps = _endless(batches, config.train.accumulate)
    trained = train_epochs(
        trainable_part,
        batches=lambda _: next(steps),  # one step per epoch, to get the loss of each step
        optimizer=optimizer,
        schedule=LambdaLR(
            optimizer, lambda step: rates[min(step, len(rates) - 1)] / config.optimizer.lr
        ),
        set_mode=set_mode,
        epochs=len(rates),
        num_classes=num_classes,
        seed=config.seed,
        label_smoothing=config.train.label_smoothing,
        class_weights=class_weights,
        aux_weight=aux_weight,
        accumulate=config.train.accumulate,
        clip_norm=config.train.clip_norm,
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
