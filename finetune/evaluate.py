"""Evaluation: eval mode, no gradients, sums and counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.errors import DataError
from finetune.metrics import Meter
from finetune.runtime import threads_for
from finetune.split import Features


@dataclass(frozen=True)
class Evaluation:
    """Figures over every sample of a split; accuracies are fractions."""

    num_images: int
    top1: float
    balanced_accuracy: float
    """Mean of the classes' own accuracies, so that each counts the same."""
    macro_f1: float
    top5: float | None
    loss: float
    per_class: tuple[tuple[int, int], ...]
    """Correct and counted samples, by class index."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Features, Tensor]],
    *,
    num_classes: int,
    keep: list[Tensor] | None = None,
) -> Evaluation:
    """Loss and accuracy over every sample; the model is in eval mode afterwards.

    It computes in one thread of torch's, so that the last bits are the same in training, in
    `eval` and in a `Predictor`; what is large computes in pieces, a core for each.

    Args:
        batches: What the model takes (images ``(N, 3, H, W)`` float32, normalised, or features of
            the frozen prefix), and labels ``(N,)`` int64.
        keep: Is given the logits of each batch, ``(N, num_classes)`` on the CPU.

    Raises:
        DataError: no sample was seen.
    """
    meter = Meter(num_classes, next(model.parameters()).device)
    model.eval()
    with threads_for(0):
        for inputs, labels in batches:
            logits = model(inputs)
            meter.add(logits, labels)
            if keep is not None:
                keep.append(logits.cpu())
    if not meter.num_images:
        raise DataError("there was no image to evaluate")
    return Evaluation(
        num_images=meter.num_images,
        top1=meter.top1,
        balanced_accuracy=meter.balanced_accuracy,
        macro_f1=meter.macro_f1,
        top5=meter.top5,
        loss=meter.loss,
        per_class=tuple(meter.per_class()),
    )
