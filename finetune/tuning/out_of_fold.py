"""Out-of-fold probabilities: those of linear heads that were not fitted to the image.

The heads are multinomial logistic regressions by L-BFGS on standardised features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.core.reporter import Reporter
from finetune.data.splits.folds import Fold
from finetune.tuning.logistic_regression import PENALTIES, Standardisation, fit_path


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities of heads that have not seen the image.

    Attributes:
        probabilities: Of each image and class, ``(N, C)`` float32; those of an image that is in the
            training part of every fold are of a head that has seen it.
        held_out: Whether no head that gave the probabilities has seen the image, ``(N,)`` bool.
        penalty: L2 penalty with the lowest cross-entropy on the held-out images.
    """

    probabilities: Tensor
    held_out: Tensor
    penalty: float


def out_of_fold(
    features: Tensor,
    labels: Tensor,
    folds: Sequence[Fold],
    *,
    num_classes: int,
    reporter: Reporter,
    penalties: Sequence[float] = PENALTIES,
) -> OutOfFold:
    """Fit a head on each fold, and return its probabilities of the images that it has not seen.

    Args:
        features: Features ``(N, D)`` float32.
        labels: Class indices ``(N,)`` int64.
        folds: Folds over the N images, from `finetune.data.splits.folds.make_folds`.
        penalties: L2 penalties to choose from, from the largest to the smallest.
    """
    logits = torch.zeros(len(penalties), len(features), num_classes)
    held_out = torch.zeros(len(features), dtype=torch.bool)
    for fold in folds:
        held_out[list(fold.held_out)] = True
    never = (~held_out).nonzero()[:, 0]
    for fold in reporter.track(folds, "out-of-fold heads", total=len(folds)):
        known = torch.tensor(fold.train)
        at = torch.tensor(fold.held_out)
        if fold is folds[0]:  # every fold has been fitted to these images
            at = torch.cat([at, never])
        standardised = Standardisation.of(features[known])
        path = fit_path(
            standardised(features[known]),
            labels[known],
            num_classes=num_classes,
            penalties=penalties,
        )
        rows = standardised(features[at])
        for number, layer in enumerate(path):
            logits[number, at] = layer(rows)
    losses = [float(F.cross_entropy(one[held_out], labels[held_out])) for one in logits]
    best = losses.index(min(losses))
    return OutOfFold(logits[best].softmax(dim=1), held_out, penalties[best])


def fitted_head(
    features: Tensor, labels: Tensor, *, num_classes: int, penalty: float
) -> tuple[Standardisation, nn.Linear]:
    """Fit a head with one penalty, and return it with the standardisation of its inputs.

    Args:
        features: Features ``(N, D)`` float32.
        labels: Class indices ``(N,)`` int64.
    """
    standardised = Standardisation.of(features)
    path = [one for one in PENALTIES if one > penalty] + [penalty]
    *_, layer = fit_path(standardised(features), labels, num_classes=num_classes, penalties=path)
    return standardised, layer
