"""The training loss: cross-entropy with smoothed labels, each image weighted by its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss:
    """The mean loss of a batch, for one network.

    Args:
        class_weights: Weight of each class, 1 on average over the training images; None for 1.
        label_smoothing: Share of each label that is spread evenly over all classes.
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
            logits: ``(N, C)``.
            labels: ``(N,)`` int64, or the share of each class, ``(N, C)``.
        """
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing, reduction="none"
        )
        return mean_over_images(losses, labels, self.class_weights)


def weights_on(device: torch.device, class_weights: Sequence[float] | None) -> Tensor | None:
    """Class weights as a tensor, ``(C,)``."""
    return None if class_weights is None else torch.tensor(class_weights, device=device)


def mean_over_images(losses: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """The mean over a batch's images of their losses, each weighted by the image's class.

    The weight multiplies the whole loss of an image, so that it changes how hard the image pulls
    but not where its optimum is. The ``weight`` of ``torch.nn.functional.cross_entropy`` multiplies
    each class's term instead: with smoothed or mixed labels, rare classes would then be predicted
    for every image. The sum is divided by the number of images, not by the sum of their weights: a
    batch of frequent classes alone would otherwise pull as hard as one that holds all rare images.

    Args:
        losses: Unweighted loss of each image, ``(N,)`` or, for several heads, ``(N, heads)``.
        labels: ``(N,)`` int64; or the share of each class, ``(N, C)``, of which an image weighs the
            mean weight.
        class_weights: ``(C,)``, or None where all images weigh the same.
    """
    if class_weights is None:
        return losses.mean(dim=0)
    weights = class_weights[labels] if labels.dim() == 1 else (labels * class_weights).sum(dim=1)
    return (losses * weights.view(-1, *[1] * (losses.dim() - 1))).mean(dim=0)
