"""Training loss: cross-entropy with label smoothing and class weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss:
    """Mean loss of a batch.

    Args:
        class_weights: Weight of each class, with mean 1 over the training images; None weights all
            classes equally.
        label_smoothing: Fraction of each label that is spread evenly over all classes.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        device: torch.device,
    ) -> None:
        self.class_weights = weights_on(device, class_weights)
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: Logits ``(N, C)``.
            labels: Class indices ``(N,)`` int64, or class probabilities ``(N, C)``.
        """
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing, reduction="none"
        )
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
