"""Training loss: cross-entropy with label smoothing and class weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossConfig:
    """Options of the training loss.

    Attributes:
        label_smoothing: Fraction of each label that is spread evenly over all classes.
        class_weights: Weight of each class, with mean 1 over the training images; None weights all
            classes equally.
        aux_weight: Weight of each auxiliary head's loss (googlenet and inception_v3).
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    aux_weight: float = 0.0


class Loss:
    """Mean loss of a batch."""

    def __init__(self, config: LossConfig, *, device: torch.device) -> None:
        self.config = config
        self.class_weights = weights_on(device, config.class_weights)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: Logits ``(N, C)``.
            labels: Class indices ``(N,)`` int64, or class probabilities ``(N, C)``.
        """
        smoothing = self.config.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return mean_over_images(losses, labels, self.class_weights)


def weights_on(device: torch.device, class_weights: Sequence[float] | None) -> Tensor | None:
    """Return class weights as a tensor ``(C,)`` on a device; None stays None."""
    return None if class_weights is None else torch.tensor(class_weights, device=device)


def mean_over_images(losses: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return the mean of the images' losses, each multiplied by the weight of the image's class.

    The weight multiplies the whole loss of an image, so it scales the image's gradient without
    moving its optimum. The ``weight`` of ``torch.nn.functional.cross_entropy`` multiplies each
    class's term instead: with smoothed or mixed labels, rare classes would then be predicted for
    every image. The sum is divided by the number of images, not by the sum of their weights, so
    that a batch of only frequent classes has a smaller gradient than one with all rare images.

    Args:
        losses: Unweighted loss of each image, ``(N,)`` or, for several heads, ``(N, heads)``.
        labels: Class indices ``(N,)`` int64, or class probabilities ``(N, C)``, by which the
            weights of an image's classes are averaged.
        class_weights: Weights ``(C,)``; None weights all images equally.
    """
    if class_weights is None:
        return losses.mean(dim=0)
    weights = class_weights[labels] if labels.dim() == 1 else (labels * class_weights).sum(dim=1)
    return (losses * weights.view(-1, *[1] * (losses.dim() - 1))).mean(dim=0)
