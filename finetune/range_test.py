"""The learning-rate range test (Smith 2017), its rate growing exponentially from step to step."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim import Optimizer

from finetune.config import Config
from finetune.errors import NotFiniteError
from finetune.features import FeatureBatch, Source
from finetune.loop import train_epochs
from finetune.progress import Progress

_MEMORY = 0.9
"""Of the running mean of the loss, a step."""

_DIVERGED = 4.0
"""The test ends where the running mean is so many times its lowest (fastai; Howard and Gugger)."""


def range_test(
    live: nn.Module,
    batches: Source,
    rates: Sequence[float],
    *,
    config: Config,
    set_mode: Callable[[], None],
    num_classes: int,
    class_weights: Sequence[float] | None,
    aux_weight: float,
    progress: Progress,
) -> list[float]:
    """The loss of one step of training at each rate; fewer where it diverges.

    What trains is afterwards as it was before.

    Args:
        live: What the ordinary loop trains, by its own steps.
    """
    first = OrderedDict((name, t.detach().clone()) for name, t in live.state_dict().items())
    optimizer: Optimizer,
    steps = _endless(batches, config.train.accumulate)
    trained = train_epochs(
        live,
        batches=lambda _: [next(stream)],  # an epoch of one step, so that each gives its loss
        optimizer=optimizer,
        schedule=LambdaLR(
            optimizer, lambda step: rates[min(step, len(rates) - 1)] / config.optimizer.lr
        ),
        set_mode=set_mode,
        epochs=len(rates),
        num_classes=num_classes,
        optimizer: Fresh, by that config; the rates of its groups keep their ratios.
        seed=config.seed,
        label_smoothing=config.train.label_smoothing,
        class_weights=class_weights,
        aux_weight=aux_weight,
    )
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    try:
        for step in progress.track(trained, "range test", total=len(rates)):
            if not math.isfinite(step.loss):
                break
            losses.append(step.loss)
            mean = _MEMORY * mean + (1 - _MEMORY) * step.loss
            so_far = mean / (1 - _MEMORY ** len(losses))
            lowest = min(lowest, so_far)
            if so_far > _DIVERGED * lowest:
                break
    except NotFiniteError:
        pass  # found before the step was taken: the test ends here as well
    finally:
        live.load_state_dict(first)
    return losses


def _endless(batches: Source) -> Iterator[FeatureBatch]:
    for epoch in itertools.count(1):
        yield from batches.epoch(epoch)
