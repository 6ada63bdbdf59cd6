"""Photos of poor quality: dark, over-exposed, blurred or of an odd size; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.checks.inspect_dataset import DatasetInspection

DARK = 50
"""Grey level that 95 % of a dark photo is below."""
OVER_EXPOSED = 180
"""Grey level that 95 % of an over-exposed photo is above."""
BLURRED_SCORE = 3.5
"""Modified z-score (Iglewicz and Hoaglin 1993) of the logarithm of a blurred photo's sharpness."""
ODD_FACTOR = 4
"""Factor between the side lengths of a photo of odd size and those of the median photo."""
ODD_SHAPE = 3
"""Ratio of the sides of a photo of odd shape, unless most photos have it."""
_NORMAL = 1.4826


@dataclass(frozen=True)
class PoorPhoto:
    """Position of a photo, the kind of finding, and the measured value in words."""

    at: int
    kind: str
    value: str


def poor_photos(inspections: DatasetInspection) -> Iterator[PoorPhoto]:
    """Yield photos of poor quality, kind by kind, the worst first."""
    readable = inspections.readable
    if not len(readable):
        return
    shadows, highlights = inspections.tones[readable].astype(np.int64).T
    dark, over = highlights < DARK, shadows > OVER_EXPOSED
    for at in _ordered(dark, highlights):
        yield PoorPhoto(int(readable[at]), "dark", f"95 % below {highlights[at]} of 255")
    for at in _ordered(over, -shadows):
        value = f"95 % above {shadows[at]} of 255"
        yield PoorPhoto(int(readable[at]), "over_exposed", value)
    sharpness = inspections.sharpness[readable].astype(np.float64)
    logs = np.log(sharpness + 1e-3)  # 0 for a photo without edges
    median = np.median(logs)
    scores = median - logs
    limit = BLURRED_SCORE * _NORMAL * np.median(np.abs(scores))
    # Too dark or bright a photo has no edges either.
    for at in _ordered((scores > limit) & ~dark & ~over, sharpness):
        share = sharpness[at] / np.exp(median)
        yield PoorPhoto(int(readable[at]), "blurred", f"edges {share:.0%} as sharp as usual")
    sizes = inspections.size[readable].astype(np.float64)
    side = np.sqrt(sizes.prod(axis=1))
    apart = np.abs(np.log(side / np.median(side)))
    shape = sizes.max(axis=1) / sizes.min(axis=1)
    is_odd = apart > np.log(ODD_FACTOR)
    if np.median(shape) < ODD_SHAPE:
        is_odd |= shape > ODD_SHAPE
    for at in _ordered(is_odd, -np.maximum(apart, np.log(shape))):
        width, height = inspections.size[readable[at]]
        yield PoorPhoto(int(readable[at]), "odd_size", f"{width} x {height}")


def _ordered(chosen: NDArray[np.bool_], by: NDArray[np.generic]) -> list[int]:
    """Return the chosen positions in ascending order of a value."""
    at = np.flatnonzero(chosen)
    found: list[int] = at[np.argsort(by[at], kind="stable")].tolist()
    return found
