"""The training loop: an algorithm, and nothing else; it knows no disk, terminal or config."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.keyed import seed_for
from finetune.metrics import Meter
from finetune.split import Features


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of training saw."""

    epoch: int
    lr: float
    """Of the epoch's first step."""
    loss: float
    top1: float
    num_images: int
    elapsed_s: float


def train_epochs(
    model: nn.Module,
    *,
    batches: Callable[[int], Iterable[tuple[Features, Tensor]]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    set_mode: Callable[[], None],
    epochs: int,
    num_classes: int,
    seed: int,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    aux_weight: float = 0.0,
) -> Iterator[EpochResult]:
    """Train, and yield after each epoch; the caller evaluates, saves and shows in between.

    Args:
        batches: The batches of an epoch, by its number from 1: what the model takes (images, or
            features of the frozen prefix), and labels: ``(N,)`` int64, or each class's share of a
            mixed image, ``(N, num_classes)``, which counts as its largest in the accuracy.
        set_mode: Puts every module into its mode for training; called at each epoch's start,
            because an evaluation in between changes modes.
        class_weights: Of each class in the loss; 1 on average over the images.
        aux_weight: Share of each auxiliary head's loss.
    """
    device = next(model.parameters()).device
    loss_of = _loss(class_weights, label_smoothing, device)
    step = 0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        set_mode()
        meter = Meter(num_classes, device)
        lr = optimizer.param_groups[0]["lr"]
        for inputs, labels in batches(epoch):
            torch.manual_seed(seed_for(seed, "step", step))
            logits, *aux_logits = _outputs(model(inputs))
            loss = loss_of(logits, labels)
            total = loss
            for aux in aux_logits:
                total = total + aux_weight * loss_of(aux, labels)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            meter.add(logits, labels if labels.dim() == 1 else labels.argmax(dim=1), loss=loss)
            step += 1
        elapsed_s = time.perf_counter() - start
        yield EpochResult(epoch, lr, meter.loss, meter.top1, meter.num_images, elapsed_s)


def _loss(
    class_weights: Sequence[float] | None, label_smoothing: float, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, its mean over a batch's images."""
    if class_weights is None:
        return partial(F.cross_entropy, label_smoothing=label_smoothing)
    weight = torch.tensor(class_weights, device=device)

    def weighted(logits: Tensor, labels: Tensor) -> Tensor:
        # torch's own mean divides by the batch's weights: a batch of frequent classes alone would
        # pull as hard as one that holds all the rare ones.
        total = F.cross_entropy(
            logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / len(labels)

    return weighted


def _outputs(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head's logits first, then those of auxiliary heads (googlenet and inception_v3)."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(part for part in output if part is not None)
