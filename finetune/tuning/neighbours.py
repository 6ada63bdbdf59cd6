"""Nearest neighbours in feature space: copies across splits, and images unlike all others.

Similarity is the cosine of features. The search is exact: every pair is compared, in blocks, so
that memory grows with the number of images and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.core.reporter import Reporter, SilentReporter

NEIGHBOURS = 10
"""Number of nearest neighbours that an image is compared with."""
LEAK_RATIO = 0.5
"""Distance to the nearest training image, relative to the tenth nearest, of a leak.

Relative to the tenth, as in Lowe's ratio test (2004), one value suits classes whose images are all
alike and classes whose images differ.
"""
OUTLIER_SCORE = 3.5
"""Modified z-score of an outlier (Iglewicz and Hoaglin 1993)."""

_QUERIES = 1024
_ROWS = 16_384
_NORMAL = 1.4826
"""Standard deviation of a normal distribution with a median absolute deviation of 1."""


@dataclass(frozen=True)
class Nearest:
    """Nearest rows of each query, the most similar first.

    Attributes:
        similarity: Cosine similarity ``(Q, K)``.
        at: Positions of the rows ``(Q, K)``.
    """

    similarity: Tensor
    at: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean similarity to the nearest rows ``(Q,)``."""
        return self.similarity.mean(dim=1)


def directions(features: Tensor) -> Tensor:
    """Return features ``(N, D)`` scaled to length 1, whose products are cosine similarities."""
    return F.normalize(features, dim=1)


def nearest(
    queries: Tensor,
    rows: Tensor,
    *,
    reporter: Reporter,
    but_self: bool = False,
    count: int = NEIGHBOURS,
) -> Nearest:
    """Return the nearest rows of each query; fewer than ``count`` if there are fewer rows.

    Args:
        queries: Directions ``(Q, D)``.
        rows: Directions ``(N, D)``, at least one; with ``but_self`` at least two.
        but_self: Whether the queries are the rows, each of which is not its own neighbour.
    """
    count = min(count, len(rows) - but_self)
    similarity = torch.empty(len(queries), count)
    at = torch.empty(len(queries), count, dtype=torch.int64)
    starts = range(0, len(queries), _QUERIES)
    for start in reporter.track(starts, "compare images", total=len(starts)):
        block = queries[start : start + _QUERIES]
        best = torch.empty(len(block), 0)
        which = torch.empty(len(block), 0, dtype=torch.int64)
        for first in range(0, len(rows), _ROWS):
            products = block @ rows[first : first + _ROWS].T
            if but_self:
                own = torch.arange(start, start + len(block)) - first
                inside = ((own >= 0) & (own < products.shape[1])).nonzero()[:, 0]
                products[inside, own[inside]] = -torch.inf
            found = products.topk(min(count, products.shape[1]), dim=1)
            best = torch.cat([best, found.values], dim=1)
            which = torch.cat([which, found.indices + first], dim=1)
            best, kept = best.topk(min(count, best.shape[1]), dim=1)
            which = which.gather(1, kept)
        similarity[start : start + len(block)] = best
        at[start : start + len(block)] = which
    return Nearest(similarity, at)


def are_leaks(found: Nearest) -> NDArray[np.bool_]:
    """Return whether each query is a near copy of its nearest row.

    It is if the row is less than half as far as the tenth nearest (`LEAK_RATIO`), distance being 1
    minus the similarity. With fewer than ten rows the last one takes the place of the tenth, and
    with one row nothing is a leak.
    """
    distance = (1 - found.similarity).clamp_min(0)
    return (distance[:, 0] < LEAK_RATIO * distance[:, -1]).numpy()


def lower_limit(similarity: Tensor) -> float:
    """Return the similarity below which an image is an outlier among these (`OUTLIER_SCORE`).

    The median and the median absolute deviation stay what they are if some images are outliers.
    """
    median = similarity.median()
    deviation = _NORMAL * (similarity - median).abs().median()
    return float(median - OUTLIER_SCORE * deviation)


@dataclass(frozen=True)
class Unlike:
    """Similarity of each image to its nearest ones, and the limit of an outlier.

    Attributes:
        similarity: Mean similarity to the nearest images ``(N,)``; NaN where there are too few.
        limit: Limit of each image ``(N,)``; NaN where there are too few.
    """

    similarity: Tensor
    limit: Tensor

    @property
    def are_outliers(self) -> NDArray[np.bool_]:
        """Whether each image is an outlier ``(N,)``."""
        return (self.similarity < self.limit).numpy()


def unlike_all(found: Nearest) -> Unlike:
    """Compare each image with the nearest ones of all, which were found ``but_self``."""
    return Unlike(found.mean, torch.full_like(found.mean, lower_limit(found.mean)))


def unlike_class(rows: Tensor, labels: Tensor) -> Unlike:
    """Compare each image with the nearest ones of its class.

    Classes with fewer than twice `NEIGHBOURS` images are too small for a limit.

    Args:
        rows: Directions ``(N, D)``.
        labels: Class indices ``(N,)``.
    """
    found = Unlike(torch.full((len(rows),), torch.nan), torch.full((len(rows),), torch.nan))
    for label in range(int(labels.max()) + 1):
        at = (labels == label).nonzero()[:, 0]
        if len(at) >= 2 * NEIGHBOURS:
            of_class = rows[at]
            mean = nearest(of_class, of_class, reporter=SilentReporter(), but_self=True).mean
            found.similarity[at] = mean
            found.limit[at] = lower_limit(mean)
    return found
