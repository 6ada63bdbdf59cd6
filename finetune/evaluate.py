"""Evaluation: eval mode, no gradients, sums and counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.errors import DataError
from finetune.metrics import Meter
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
    """Loss and accuracy over every sample; the modules' modes are restored afterwards.

    Args:
        batches: What the model takes (images ``(N, 3, H, W)`` float32, normalised, or features of
            the frozen prefix), and labels ``(N,)`` int64.
        keep: Is given the logits of each batch, ``(N, num_classes)`` on the CPU.

    Raises:
        DataError: no sample was seen.
    """
    meter = Meter(num_classes, next(model.parameters()).device)
    with eval_mode(model):
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


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; then each back in its own, which differs from module to module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
