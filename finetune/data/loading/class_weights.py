"""Class weights for imbalanced data; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def class_weights(counts: Sequence[int]) -> list[float]:
    """Return the weight of each class in the loss: ``n / (k * n_c)``.

    Here n is the number of images, k of classes and n_c of images of class c. This is the heuristic
    of King and Zeng (2001), which scikit-learn calls balanced. The total weight of every class is
    the same, and the mean weight of an image is 1; a class without images has weight 0.
    """
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return [total / (classes * count) if count else 0.0 for count in counts]
