"""The learning-rate range test (Smith 2017), its rate growing exponentially from step to step."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.config import Config
from finetune.errors import NotFiniteError
from finetune.features import FeatureBatch, Source
from finetune.loop import train_epochs
from finetune.progress import Progress

_MEMORY = 0.9
"""Of the running mean of the loss, a step."""

_DIVERGED = 4.0
"""The test ends where the running mean is so many times its lowest (fastai; Howard and Gugger)."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw.

    Attributes:
        losses: Of each step, finite.
        ended_at: The rate of the step that ended it early; None where it reached the last.
    """

    losses: tuple[float, ...]
    ended_at: float | None


def range_test(
    live: nn.Module,
    batches: Source,
    rates: Sequence[float],
    *,
    config: Config,
    optimizer: Optimizer,
    set_mode: Callable[[], None],
    num_classes: int,
    class_weights: Sequence[float] | None,
    aux_weight: float,
    progress: Progress,
) -> RangeTest:
    """The loss of one step of training at each rate.

    What trains is afterwards as it was before.

    Args:
        live: What the ordinary loop trains, by its own steps.
        optimizer: Fresh, by that config; the rates of its groups keep their ratios.
    """
    first = OrderedDict((name, t.detach().clone()) for name, t in live.state_dict().items())
    steps = _endless(batches, config.train.accumulate)
    trained = train_epochs(
        live,
        batches=lambda _: next(steps),  # an epoch of one step, so that each gives its loss
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
        for at, step in enumerate(progress.track(trained, "range test", total=len(rates))):
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
    except NotFiniteError:  # found before the step was taken: the test ends here as well
        ended_at = rates[len(losses)]
    finally:
        live.load_state_dict(first)
    return RangeTest(tuple(losses), ended_at)


def _endless(batches: Source, accumulate: int) -> Iterator[list[FeatureBatch]]:
    """The batches of each step; as in training, an epoch's last one takes what is left."""
    for epoch in itertools.count(1):
        left = iter(batches.epoch(epoch))
        while step := list(itertools.islice(left, accumulate)):
            yield step
