"""How much a class weighs where some are rare; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weight of each class in the loss: ``n / (k * n_c)``.

    For n images of k classes, n_c of them of class c: the heuristic of King and Zeng (2001), which
    scikit-learn calls balanced. Every class weighs the same in sum, an image 1 on average; a class
    without images weighs nothing.
    """
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return [total / (classes * count) if count else 0.0 for count in counts]
