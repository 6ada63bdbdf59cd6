"""Search for near-equal perceptual hashes among a million, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_DIFFERENT = 4
"""Maximum Hamming distance of 64-bit hashes.

On flower photos and CIFAR-100, every pair within it was the same image, cropped, recoloured or
recompressed; at 6, different images appear.
"""

_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
_MOST_COMPARED = 4_000_000_000
_MOST_PAIRS = 2_000_000
_BLOCK = 2048


@dataclass(frozen=True)
class NearPairs:
    """Pairs of positions of near-equal hashes, and whether all pairs were found."""

    pairs: NDArray[np.int64]
    complete: bool


def near_pairs(hashes: NDArray[np.uint64]) -> NearPairs:
    """Return pairs ``(N, 2)`` of positions whose hashes differ in at most `MOST_DIFFERENT` bits.

    Positions with the same hash are each paired with the first of them, and only the first is
    paired with positions of other hashes.

    Two near-equal hashes agree in at least one of five bands of bits (the pigeonhole principle, as
    in Norouzi et al. 2012), so only hashes that share a band are compared.
    """
    values, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    others = np.flatnonzero(first[which] != np.arange(len(hashes)))
    found = [np.stack([first[which[others]], others], axis=1)]
    count = len(others)
    compared = 0
    for number, (shift, width) in enumerate(_BANDS):
        band = (values >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            if compared > _MOST_COMPARED or count > _MOST_PAIRS:
                break
            compared += len(members) ** 2
            for pairs in _compare(values, members):
                new = pairs[_is_first_band(values, pairs, number)]
                count += len(new)
                found.append(np.sort(first[new], axis=1))
    every = np.concatenate(found)
    complete = compared <= _MOST_COMPARED and count <= _MOST_PAIRS
    return NearPairs(every[np.lexsort((every[:, 1], every[:, 0]))], complete)


def _compare(hashes: NDArray[np.uint64], members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield near-equal pairs among the members of one bucket, in blocks of bounded memory."""
    values = hashes[members]
    if len(members) < 2:
        return
    for start in range(0, len(members), _BLOCK):
        rows = values[start : start + _BLOCK]
        for other in range(start, len(members), _BLOCK):
            columns = values[other : other + _BLOCK]
            near = np.bitwise_count(rows[:, None] ^ columns[None, :]) <= MOST_DIFFERENT
            left, right = np.nonzero(near)
            left, right = members[left + start], members[right + other]
            keep = left < right
            if keep.any():
                yield np.stack([left[keep], right[keep]], axis=1)


def _is_first_band(
    hashes: NDArray[np.uint64], pairs: NDArray[np.int64], number: int
) -> NDArray[np.bool_]:
    """Return whether pairs agree in no earlier band, where they would have been found."""
    different = hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]
    first = np.ones(len(pairs), dtype=bool)
    for shift, width in _BANDS[:number]:
        first &= (different >> np.uint64(shift)) & np.uint64((1 << width) - 1) != 0
    return first
