"""Training loop, independent of disk, terminal and config."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.checkpoints.train_progress import TrainProgress
from finetune.training.ema import EMA
from finetune.training.loss import Loss
from finetune.training.metrics import Meter
from finetune.training.step import Batch, Step


@dataclass(frozen=True)
class EpochResult:
    """Training metrics of one epoch."""

    epoch: int
    lr: float
    """Highest learning rate of any parameter group in the epoch's first step."""
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
    average: EMA | None = None,
    position: TrainProgress | None = None,
    meter: Meter | None = None,
    between_steps: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[EpochResult]:
    """Train and yield after each epoch; the caller evaluates, saves and reports in between.

    Args:
        batches: Function from an epoch number (from 1) to its batches after ``position.batch``.
            A batch contains the model's input (images, or features of the frozen prefix) and
            labels: ``(N,)`` int64, or ``(N, num_classes)`` class probabilities of mixed images,
            of which the largest is the label for the accuracy.
        set_mode: Function that puts every module into its mode for training; called at each
            epoch's start, because an evaluation in between changes modes.
        seed: Seed of dropout and other randomness of the steps.
        label_smoothing, class_weights: Arguments of `finetune.training.loss.Loss`.
        aux_weight: Weight of each auxiliary head's loss.
        accumulate: Number of batches per optimizer step; an epoch's last step may have fewer.
        clip_norm: Maximum gradient norm of a step.
        average: EMA to update after each step.
        position, meter: Train progress to start from and metrics of its epoch so far; both are
            updated in place.
        between_steps: Function called after each step, when the train state is consistent; may
            save a checkpoint, and may raise to end the training.
        say: Function that receives a message when memory runs out and smaller micro-batches are
            used from then on.

    Raises:
        NotFiniteError: a loss or a gradient is not finite.
        FinetuneError: memory does not suffice for two images.
    """
    device = next(model.parameters()).device
    position = position or TrainProgress()
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
