"""The training loop: an algorithm, and nothing else; it knows no disk, terminal or config."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.averaging import Average
from finetune.loss import Loss
from finetune.metrics import Meter
from finetune.position import Position
from finetune.step import Batch, Step


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of training saw."""

    epoch: int
    lr: float
    """The highest of any parameter group, in the epoch's first step."""
    loss: float
    top1: float
    num_images: int
    elapsed_s: float


def train_epochs(
    model: nn.Module,
    *,
    batches: Callable[[int], Iterable[Batch]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    set_mode: Callable[[], None],
    epochs: int,
    num_classes: int,
    seed: int,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    aux_weight: float = 0.0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    average: Average | None = None,
    position: Position | None = None,
    meter: Meter | None = None,
    between_steps: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[EpochResult]:
    """Train, and yield after each epoch; the caller evaluates, saves and shows in between.

    Args:
        batches: The batches of an epoch, by its number from 1, behind ``position.batch``: what the
            model takes (images, or features of the frozen prefix), and labels: ``(N,)`` int64, or
            each class's share of a mixed image, ``(N, num_classes)``, which counts as its largest
            in the accuracy.
        set_mode: Puts every module into its mode for training; called at each epoch's start,
            because an evaluation in between changes modes.
        label_smoothing, class_weights: As `finetune.loss.Loss` takes them.
        aux_weight: Share of each auxiliary head's loss.
        accumulate: Batches that make a step; an epoch's last step takes what is left.
        clip_norm: Longest gradient of a step.
        average: Is told of each step.
        position, meter: Where to begin, and what that epoch saw so far; both are kept up to date.
        between_steps: Called after each step, when all of them agree: may save, and may raise to
            end the training.
        say: Is told when memory runs out and smaller pieces are computed from then on.

    Raises:
        NotFiniteError: a loss or a gradient is no number.
        FinetuneError: memory does not suffice for two images.
    """
    device = next(model.parameters()).device
    position = position or Position()
    meter = meter or Meter(num_classes, device)
    loss_of = Loss(class_weights, label_smoothing, device=device)
    step = Step(
        *(model, optimizer, loss_of),
        seed=seed,
        aux_weight=aux_weight,
        clip_norm=clip_norm,
        say=say,
    )
    while position.epoch <= epochs:
        if not position.batch:
            meter.reset()
            position.lr = max(group["lr"] for group in optimizer.param_groups)
        start = time.perf_counter() - position.elapsed_s
        set_mode()
        for group in _groups_of(accumulate, batches(position.epoch)):
            step.take(group, meter, position)
            schedule.step()
            if average is not None:
                average.update()
            position.advance(len(group), elapsed_s=time.perf_counter() - start)
            between_steps()
        step.watch.look()
        yield EpochResult(
            position.epoch,
            position.lr,
            meter.loss,
            meter.top1,
            meter.num_images,
            time.perf_counter() - start,
        )
        position.begin_next_epoch()


def _groups_of(count: int, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, count)):
        yield group
