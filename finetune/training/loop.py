"""Training loop, independent of disk, terminal and config."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.checkpoints.train_progress import TrainProgress
from finetune.distributed.group import ONE_PROCESS
from finetune.distributed.verdict import Verdict, reading
from finetune.training.ema import EMA
from finetune.training.loss import Loss, LossConfig
from finetune.training.metrics import Meter
from finetune.training.shared_step import SharedStep
from finetune.training.step import Batch, Step, StepConfig

T = TypeVar("T")


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


@dataclass
class LoopState:
    """State that a training loop updates in every step.

    Attributes:
        model: Module to train; its input is that of the batches.
        num_classes: Number of logits of the model.
        average: EMA of the weights; None without one.
        progress: Epoch, batch and step counters.
        meter: Metrics of the current epoch so far.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    num_classes: int
    average: EMA | None = None
    progress: TrainProgress = field(default_factory=TrainProgress)
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.num_classes, next(self.model.parameters()).device)


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training loop calls.

    Attributes:
        set_mode: Puts every module into its mode for training; called at each epoch's start,
            because an evaluation in between changes modes.
        after_step: Called after each step, when the train state is consistent; may save a
            checkpoint, and may raise to end the training.
        warn: Receives a message when memory runs out and smaller micro-batches are used from then
            on.
    """

    set_mode: Callable[[], None]
    after_step: Callable[[], None] = lambda: None
    warn: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Sharing:
    """Verdict and batch sizes of a training of which several processes share each batch.

    Attributes:
        sizes: Number of images of each whole batch of an epoch.
    """

    verdict: Verdict
    sizes: Sequence[int]


def train_epochs(
    state: LoopState,
    batches: Callable[[int], Iterable[Batch]],
    *,
    epochs: int,
    step: StepConfig,
    loss: LossConfig | None = None,
    callbacks: Callbacks,
    sharing: Sharing | None = None,
) -> Iterator[EpochResult]:
    """Train and yield after each epoch; the caller evaluates, saves and reports in between.

    Args:
        state: Model, optimizer and schedule, and the progress to start from; updated in place.
        batches: Function from an epoch number (from 1) to its batches after the progress's
            ``batch``. A batch contains the model's inputs (images, or features of the frozen
            prefix) and labels: ``(N,)`` int64, or ``(N, num_classes)`` class probabilities of
            mixed images, of which the largest is the label for the accuracy.
        epochs: Number of the last epoch to train.
        loss: Options of the loss; None for plain cross-entropy.
        sharing: Verdict and batch sizes of several processes; ``batches`` then have this process's
            rows of each batch, and metrics are those of all processes.

    Raises:
        NotFiniteError: a loss or a gradient is not finite.
        FinetuneError: memory does not suffice for two images.
    """
    progress, meter = state.progress, state.meter
    device = next(state.model.parameters()).device
    criterion = Loss(loss or LossConfig(), device=device)
    steps: Step | SharedStep
    if sharing is None:
        steps = Step(state.model, state.optimizer, criterion, step, warn=callbacks.warn)
        group = ONE_PROCESS
    else:
        group = sharing.verdict.group
        steps = SharedStep(
            state.model,
            state.optimizer,
            criterion,
            step,
            warn=callbacks.warn,
            verdict=sharing.verdict,
            sizes=sharing.sizes,
        )
    while progress.epoch <= epochs:
        if not progress.batch:
            meter.reset()
            progress.lr = max(group["lr"] for group in state.optimizer.param_groups)
        start = time.perf_counter() - progress.elapsed_s
        callbacks.set_mode()
        epoch = batches(progress.epoch)
        for together in _groups_of(step.accumulate, reading(epoch) if sharing else epoch):
            steps.take(together, meter, progress)  # type: ignore[arg-type]  # Unread if shared
            state.schedule.step()
            if state.average is not None:
                state.average.update()
            progress.advance(len(together), elapsed_s=time.perf_counter() - start)
            callbacks.after_step()
        steps.finite.check()
        whole = meter.added_up(group)
        yield EpochResult(
            epoch=progress.epoch,
            lr=progress.lr,
            loss=whole.loss,
            top1=whole.top1,
            num_images=whole.num_images,
            elapsed_s=time.perf_counter() - start,
        )
        progress.begin_next_epoch()


def _groups_of(count: int, batches: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, count)):
        yield group
