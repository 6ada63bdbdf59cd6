"""Confident learning (Northcutt et al. 2021): which labels are probably wrong.

cleanlab implements it too, but requires pandas and scikit-learn for what are a few lines of numpy
here. ``tests/unit/tuning/test_confident_learning.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.core.reporter import Reporter
from finetune.data.splits.folds import Fold
from finetune.tuning.out_of_fold import out_of_fold

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""L2 penalties to choose from; wrong labels ask for larger ones than clean labels do."""
_OF_NEIGHBOURS = 0.2
"""Weight of the neighbours' labels in the probabilities."""
_EVEN = 2.0
"""Weight of equally frequent errors relative to the counted ones."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LabelQuality:
    """Suspicion of each label.

    Attributes:
        thresholds: Mean probability of each class over the images with its label ``(C,)``; NaN for
            a class without images.
        joint: Confident joint ``(C, C)``: number of images with a label (row) that are confidently
            of a class (column).
        suggested: Class that the image is confidently of; without one, or if it is the label, the
            most probable other class ``(N,)``.
        score: Probability that the label is wrong ``(N,)``.
        is_suspected: Whether the image is confidently of another class than its label ``(N,)``.
    """

    thresholds: NDArray[np.float64]
    joint: NDArray[np.int64]
    suggested: NDArray[np.int64]
    score: NDArray[np.float64]
    is_suspected: NDArray[np.bool_]


def label_quality(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> LabelQuality:
    """Judge each label by the probabilities of a model that was not fitted to the image.

    An image is confidently of the most probable of those classes whose probability is at least the
    threshold of the class: a class that is hard to tell apart needs a lower probability.

    The score is Bayes' theorem with the frequency of each error in the confident joint. Of two
    images with equal probabilities, the one is more suspicious whose label is a frequent mistake
    for its most probable class. Without differences in frequency, the order is that of the
    probability of the label.

    Args:
        probabilities: Of each image and class ``(N, C)``.
        labels: Class indices ``(N,)``.
    """
    num_classes = probabilities.shape[1]
    rows = np.arange(len(labels))
    given = probabilities[rows, labels]
    with np.errstate(invalid="ignore"):  # 0 / 0 for a class without images
        thresholds = np.bincount(labels, given, num_classes) / np.bincount(
            labels, minlength=num_classes
        )
    above = probabilities >= thresholds - _ROUNDING
    is_confident = above.any(axis=1)
    confident = np.where(above, probabilities, -1.0).argmax(axis=1)
    joint = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(joint, (labels[is_confident], confident[is_confident]), 1)
    is_suspected = is_confident & (confident != labels)
    others = probabilities.copy()
    others[rows, labels] = -1.0
    suggested = np.where(is_suspected, confident, others.argmax(axis=1))
    # Of each image, the probability of each true class and of its label at once.
    both = probabilities * _label_given_class(joint)[labels]
    score = 1 - both[rows, labels] / np.maximum(both.sum(axis=1), np.finfo(np.float64).tiny)
    return LabelQuality(thresholds, joint, suggested, score, is_suspected)


def _label_given_class(joint: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of each label (row) of an image of a class (column).

    It is what the confident joint says, drawn towards errors that are equally frequent between all
    classes: there are few of them to count.
    """
    num_classes = len(joint)
    wrong = 1.0 - np.eye(num_classes)
    mean = (joint * wrong).sum() / max(wrong.sum(), 1)
    counts = joint + _EVEN * mean * wrong
    found: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=0), 1)
    return found


def neighbour_shares(
    near: NDArray[np.int64], labels: NDArray[np.int64], groups: Sequence[str], num_classes: int
) -> NDArray[np.float64]:
    """Return the share of each class among the nearest images that are not of the same group.

    Args:
        near: Positions of the nearest images of each image ``(N, K)``.
        labels: Class indices ``(N,)``.

    Returns:
        Shares ``(N, C)``; NaN for an image whose neighbours are all of its group.
    """
    number = np.unique(np.array(groups), return_inverse=True)[1]
    is_other = number[near] != number[:, None]
    counts = np.zeros((len(labels), num_classes))
    rows = np.broadcast_to(np.arange(len(labels))[:, None], near.shape)
    np.add.at(counts, (rows[is_other], labels[near][is_other]), 1)
    with np.errstate(invalid="ignore"):
        counts /= counts.sum(axis=1, keepdims=True)
    return counts


@dataclass(frozen=True)
class JudgedLabels:
    """Labels judged by heads, and by neighbours, that do not know the image's label.

    Attributes:
        quality: Suspicion of each label; one whose image is never held out is not suspected.
        probabilities: Of each image and class ``(N, C)``.
        held_out: Whether no head has seen the image ``(N,)``.
        penalty: L2 penalty of the heads.
    """

    quality: LabelQuality
    probabilities: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    penalty: float

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        """Return the share of the images whose label is the most probable class."""
        agree = self.probabilities.argmax(axis=1) == labels
        return float(agree[self.held_out].mean())


def judge_labels(
    features: Tensor,
    labels: NDArray[np.int64],
    folds: Sequence[Fold],
    shares: NDArray[np.float64],
    *,
    reporter: Reporter,
) -> JudgedLabels:
    """Judge labels by out-of-fold heads and by nearest neighbours, in two rounds.

    The heads of the second round are fitted without the labels that the first round suspects, so
    that wrong labels do not support each other. The probabilities are those of the heads, mixed
    with the shares of the classes among the neighbours. Both find more of planted errors; figures
    are in ``docs/data.md``.

    Args:
        features: Features ``(N, D)`` float32.
        labels: Class indices ``(N,)``.
        folds: Folds over the N images, from `finetune.data.splits.folds.make_folds`.
        shares: Shares ``(N, C)`` from `neighbour_shares`.
    """
    first = _judged(features, labels, folds, shares, PENALTIES, reporter)
    suspected = first.quality.is_suspected
    if not suspected.any():
        return first
    # A class of which most is suspected would be unknown without these images.
    counts = np.bincount(labels, minlength=shares.shape[1])
    is_lost = np.bincount(labels[suspected], minlength=shares.shape[1]) > counts / 2
    left_out = suspected & ~is_lost[labels]
    kept = [
        Fold(tuple(at for at in fold.train if not left_out[at]), fold.held_out) for fold in folds
    ]
    return _judged(features, labels, kept, shares, [first.penalty], reporter)


def _judged(
    features: Tensor,
    labels: NDArray[np.int64],
    folds: Sequence[Fold],
    shares: NDArray[np.float64],
    penalties: Sequence[float],
    reporter: Reporter,
) -> JudgedLabels:
    found = out_of_fold(
        features,
        torch.from_numpy(labels),
        folds,
        num_classes=shares.shape[1],
        reporter=reporter,
        penalties=penalties,
    )
    of_heads = found.probabilities.double().numpy()
    mixed = (1 - _OF_NEIGHBOURS) * of_heads + _OF_NEIGHBOURS * shares
    probabilities = np.where(np.isnan(mixed), of_heads, mixed)
    held_out = found.held_out.numpy()
    quality = label_quality(probabilities, labels)
    quality.is_suspected[~held_out] = False
    return JudgedLabels(quality, probabilities, held_out, found.penalty)


def with_conflicts(
    judged: JudgedLabels, labels: NDArray[np.int64], copies: Sequence[Sequence[int]]
) -> JudgedLabels:
    """Suspect all labels but the most probable one of equal images with different labels.

    Their score is 1: at least one of the labels is wrong for certain, however unsure the heads are.

    Args:
        labels: Class indices ``(N,)``.
        copies: Positions of each group of equal images.
    """
    quality = judged.quality
    suggested, score = quality.suggested.copy(), quality.score.copy()
    is_suspected = quality.is_suspected.copy()
    for group in copies:
        at = np.asarray(group)
        present = np.unique(labels[at])
        if len(present) > 1:
            best = present[judged.probabilities[at][:, present].mean(axis=0).argmax()]
            wrong = at[labels[at] != best]
            suggested[wrong], score[wrong], is_suspected[wrong] = best, 1.0, True
    changed = replace(quality, suggested=suggested, score=score, is_suspected=is_suspected)
    return replace(judged, quality=changed)
