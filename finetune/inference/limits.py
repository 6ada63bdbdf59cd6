"""Limits of a network's answers: distance to the training photos, and prediction sets.

The distance is that of Mahalanobis to the nearest class (Lee et al. 2018), between the inputs of
the head, each normalised to length 1. All classes share a covariance, which is that of
probabilistic principal components (Tipping and Bishop 1999): a few directions have variances of
their own, all others one in common. It is therefore small, and exact in an exported graph.

Both limits are set on validation photos, with the correction for their number of split conformal
prediction (Vovk et al. 2005): they hold for new photos like these, on average over the validation
photos that could have been drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.checkpoints.limits import Limits, LimitsRecord
from finetune.core.errors import CheckpointError
from finetune.core.threads import threads_for

RATE = 0.05
"""False-alarm rate of the mark ``unlike``."""
MOST_TRAINING, LEAST_OF_CLASS, MOST_VALIDATION = 500, 10, 2_000
"""Numbers of photos that the limits are fitted on: training photos of all classes, of a class where
there are many classes, and validation photos."""
_RANK = 16
"""Number of directions with variances of their own. Between 8 and 32 the results are alike; more of
them separate unknown photos less well from few training photos."""
_SMALLEST = 1e-9
"""Smallest variance: with one photo for each class, there is none."""


class Distance(nn.Module):
    """Distance of embeddings to the training photos; above 1 a photo is unlike them.

    Without a limit, because there were too few validation photos, the unit of the distance has no
    meaning.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        for name in ("centre", "scale", "directions", "weights", "offsets"):
            self.register_buffer(name, getattr(limits, name))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the distances ``(N,)`` of embeddings ``(N, d)``."""
        part = self.get_buffer
        length = embeddings.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        centred = embeddings / length - part("centre")
        squared = part("scale") * centred.square().sum(dim=1)
        squared = squared - (centred @ part("directions").T).square().sum(dim=1)
        nearest = (part("offsets") - centred @ part("weights").T).amin(dim=1)
        return (squared + nearest).clamp_min(0).sqrt()


def spread_over_classes(labels: Sequence[int], num_classes: int) -> list[int]:
    """Return the positions of the training photos that the distance is fitted on.

    They are the same number of each class, as far as there are so many, evenly spaced.
    """
    most = max(LEAST_OF_CLASS, MOST_TRAINING // num_classes)
    of_class: list[list[int]] = [[] for _ in range(num_classes)]
    for at, label in enumerate(labels):
        of_class[label].append(at)
    return sorted(at for positions in of_class for at in evenly(positions, most))


def evenly(positions: Sequence[int], most: int) -> list[int]:
    """Return at most so many positions, evenly spaced."""
    count = min(most, len(positions))
    return [positions[at * len(positions) // count] for at in range(count)]


def fit_limits(
    training: Tensor, training_labels: Tensor, embeddings: Tensor, shares: Tensor, labels: Tensor
) -> Limits:
    """Fit the distance on training photos, and set both limits on validation photos.

    Args:
        training: Embeddings of training photos ``(N, d)``.
        training_labels: Their class indices ``(N,)``.
        embeddings: Embeddings of validation photos ``(M, d)``.
        shares: Probabilities of the validation photos ``(M, classes)``.
        labels: Their class indices ``(M,)``.
    """
    record = LimitsRecord(rate=RATE, training_images=len(training), images=len(embeddings))
    of_true = shares.gather(1, labels[:, None])[:, 0].float().sort().values
    with threads_for(0):  # on busy cores, several threads take many times as long
        limits = Limits(record, *_fit_distance(training.double(), training_labels), of_true)
    if not has_limit(record):
        return limits
    distances = Distance(limits)(embeddings.float()).sort().values
    limit = float(distances[_rank(len(distances), 1 - RATE) - 1].clamp_min(_SMALLEST))
    limit *= 1 + 1e-5  # other batches and runtimes round differently
    root, square = 1 / limit, 1 / limit**2
    return Limits(
        record,
        limits.centre,
        limits.scale * square,
        limits.directions * root,
        limits.weights * square,
        limits.offsets * square,
        of_true,
    )


def _fit_distance(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors of the distance, as in `Limits`, before a limit is set."""
    rows = nn.functional.normalize(rows, dim=1)
    centre = rows.mean(dim=0)
    known, at = torch.unique(labels, return_inverse=True)
    sums = torch.zeros(len(known), rows.shape[1], dtype=rows.dtype).index_add_(0, at, rows)
    means = sums / at.bincount()[:, None]
    scatter = rows - means[at]
    axes, variances = _principal(scatter, min(_RANK, *(side - 1 for side in rows.shape)))
    rest = (scatter.square().sum() / len(rows) - variances.sum()) / (rows.shape[1] - len(axes))
    rest = rest.clamp_min(_SMALLEST)
    # The inverse of a covariance with the variances along the axes, and `rest` everywhere else.
    less = 1 / rest - 1 / variances.clamp_min(rest)
    apart = means - centre
    along = apart @ axes.T
    weights = apart / rest - (along * less) @ axes
    offsets = (weights * apart).sum(dim=1)
    found = centre, 1 / rest, axes * less.sqrt()[:, None], 2 * weights, offsets
    first, scale, directions, linear, constant = (tensor.float() for tensor in found)
    return first, scale, directions, linear, constant


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the directions ``(count, d)`` of most variance around 0, and the variances in them."""
    tall = len(rows) >= rows.shape[1]
    product = rows.T @ rows if tall else rows @ rows.T
    values, vectors = torch.linalg.eigh(product)  # ascending; much faster than a decomposition
    values, vectors = values[len(values) - count :], vectors[:, len(values) - count :]
    axes = vectors.T if tall else nn.functional.normalize(vectors.T @ rows, dim=1)
    return axes, values.clamp_min(0) / len(rows)


def _rank(count: int, share: float) -> int:
    """Return the rank, from 1, of the value of so many that a new one exceeds in at most the rest.

    It is larger than ``count`` if there are too few.
    """
    return math.ceil(round((count + 1) * share, 9))


def least_images(share: float) -> int:
    """Return the number of validation photos needed to hold a share, such as a coverage of 0.9."""
    return math.ceil(round(1 / (1 - share), 9)) - 1


def has_limit(record: LimitsRecord) -> bool:
    """Whether there were enough validation photos for the false-alarm rate."""
    return record.images >= least_images(1 - record.rate)


def set_threshold(limits: Limits, coverage: float) -> float:
    """Return the probability from which a class belongs to the prediction set of a coverage.

    The sets are the least ambiguous ones (Sadinle et al. 2019): among sets with the same coverage
    they have the fewest classes. The most probable class always belongs to them.

    Raises:
        CheckpointError: there were too few validation photos.
    """
    count = limits.record.images
    if count < least_images(coverage):
        raise CheckpointError(
            f"{count:,} validation photos are too few for prediction sets with coverage "
            f"{coverage:g}: at least {least_images(coverage):,} are needed",
            kind="checkpoint.too_few_images",
            to_do="lower --coverage, or set the limits on more photos: "
            "finetune eval RUN --calibrate --data DIR",
        )
    return float(limits.shares[count - _rank(count, coverage)])


def prediction_sets(shares: Tensor, threshold: float) -> Tensor:
    """Return which classes are in the sets of probabilities ``(N, classes)``, as bool."""
    return (shares >= threshold) | (shares == shares.amax(dim=1, keepdim=True))
