"""Rows of ``predictions.csv``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from finetune.data.images import Images, below
from finetune.inference.scoring import Scored

_MOST_CLASSES = 5
HEADER = (
    *("path", "true", "predicted", "probability", "margin", "loss"),
    *(f"{what}_{at}" for at in range(2, _MOST_CLASSES + 1) for what in ("class", "probability")),
)
"""Columns of ``predictions.csv``.

``margin`` is the difference between the two highest probabilities, ``loss`` the cross-entropy of
the probabilities, and ``class_2`` the second most probable class; with fewer classes, the last
columns are empty.
"""


def rows(
    images: Images, logits: Tensor, scored: Scored, *, base: Path
) -> Iterator[tuple[str, ...]]:
    """Yield one row per image, in dataset order, with paths relative to ``base``."""
    names = images.class_names
    best = best_classes(logits, scored.probabilities, _MOST_CLASSES)
    for path, label, loss, at, shares in zip(
        images.paths, images.labels, scored.losses.tolist(), *best, strict=True
    ):
        others = [
            text
            for i, share in zip(at[1:], shares[1:], strict=True)
            for text in (names[i], f"{share:.6f}")
        ]
        yield (
            below(path, base),
            names[label],
            names[at[0]],
            f"{shares[0]:.6f}",
            f"{shares[0] - shares[1]:.6f}",
            f"{loss:.6f}",
            *others,
            *[""] * (2 * (_MOST_CLASSES - 1) - len(others)),
        )


def best_classes(
    logits: Tensor, shares: Tensor, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the classes with the highest logits ``(N, classes)`` and their probabilities.

    Classes are ordered by logits, best first, because rounding may make probabilities equal. Of
    equal logits the first comes first, as in ``argmax``.
    """
    at = logits.argsort(dim=1, descending=True, stable=True)[:, :count]
    return at.tolist(), shares.gather(1, at).tolist()
