"""What a network says of each image, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from finetune.data.images import Images, below
from finetune.scoring import Scored

HEADER = ("path", "true", "predicted", "probability", "margin", "loss", "top5")
"""Of ``predictions.csv``. ``margin`` is the distance to the second probability; ``loss`` the
cross-entropy of the probabilities; ``top5`` a JSON list of pairs, since a class may have any name.
"""


def rows(
    images: Images, logits: Tensor, scored: Scored, *, base: Path
) -> Iterator[tuple[str, ...]]:
    """A row an image, in the order of the data; paths relative to ``base``."""
    names = images.class_names
    best = best_classes(logits, scored.probabilities, 5)
    for path, label, loss, at, shares in zip(
        images.paths, images.labels, scored.losses.tolist(), *best, strict=True
    ):
        yield (
            below(path, base),
            names[label],
            names[at[0]],
            f"{shares[0]:.6f}",
            f"{shares[0] - shares[1]:.6f}",
            f"{loss:.6f}",
            json.dumps(
                [[names[i], round(share, 6)] for i, share in zip(at, shares, strict=True)],
                ensure_ascii=False,
            ),
        )


def best_classes(
    logits: Tensor, shares: Tensor, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The classes of the highest logits ``(N, classes)``, and their probabilities, best first.

    Logits decide: their order survives where rounding makes probabilities equal, and the first of
    equal ones is what ``argmax`` takes.
    """
    at = logits.argsort(dim=1, descending=True, stable=True)[:, :count]
    return at.tolist(), shares.gather(1, at).tolist()
