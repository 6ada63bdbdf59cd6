"""Evaluation of a model on a split, in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.core.errors import DataError
from finetune.core.threads import threads_for
from finetune.distributed.group import ONE_PROCESS, Group
from finetune.distributed.verdict import in_step
from finetune.freezing.graph_split import Features
from finetune.training.metrics import Meter


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all samples of a split; accuracies are fractions."""

    num_images: int
    top1: float
    balanced_accuracy: float
    """Mean per-class recall."""
    macro_f1: float
    top5: float | None
    loss: float
    per_class: tuple[tuple[int, int], ...]
    """Numbers of correct and of all samples, by class index."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Features, Tensor]],
    *,
    num_classes: int,
    keep: list[Tensor] | None = None,
    group: Group = ONE_PROCESS,
    number: int = 0,
) -> Evaluation:
    """Compute the metrics over all samples; the model is in eval mode afterwards.

    torch runs in a single thread, so that the last bits are the same in training, in `eval` and in
    a `Predictor`; large models process micro-batches in parallel, one per core.

    Args:
        batches: Model inputs, a tuple of tensors (images ``(N, 3, H, W)`` float32, normalised, or
            features of the frozen prefix), and labels ``(N,)`` int64.
        keep: List to which the logits of each batch, ``(N, num_classes)`` on the CPU, are appended.
        group: Processes that share the batches, each of which has ``batches`` of its own; the
            result is that of one process, bit for bit.
        number: Number of batches of all processes; needed if there are several.

    Raises:
        DataError: there are no samples.
        OtherProcessError: another process has failed.
        Interrupted: a signal asked one of several processes to stop.
    """
    meter = Meter(num_classes, next(model.parameters()).device)
    losses: list[Tensor] = []
    model.eval()
    with threads_for(0):
        for inputs, labels in in_step(batches, group, group.ranks.batches(number)):
            logits = model(*inputs)
            losses.append(meter.add(logits, labels))
            if keep is not None:
                keep.append(logits.cpu())
    meter = meter.in_order(group, losses, number)
    if not meter.num_images:
        raise DataError("no images to evaluate", kind="data.no_images")
    return Evaluation(
        num_images=meter.num_images,
        top1=meter.top1,
        balanced_accuracy=meter.balanced_accuracy,
        macro_f1=meter.macro_f1,
        top5=meter.top5,
        loss=meter.loss,
        per_class=tuple(meter.per_class()),
    )
