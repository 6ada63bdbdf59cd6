"""Copies among images whose files were inspected: photos in two splits or in two classes.

Files of equal content are always found. Images of equal pixels in other files, and images that look
alike, are found once ``check-data`` has decoded all images; the latter only in data of some size.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetune.core.files import sha256_of
from finetune.data.checks.inspect_file import FileInspection
from finetune.data.checks.near_duplicates import near_pairs
from finetune.data.images import Images

K = TypeVar("K", bound=Hashable)

_MOST_COMPARED = 20_000
"""Number of images up to which those that look alike are sought before every run, in a second."""


@dataclass(frozen=True)
class KnownCopies:
    """Copies among the images of one or two splits.

    Attributes:
        leaked: Positions in the second split of images that the first one contains too.
        alike: Positions in the second split of other images that look like one of the first; empty
            for very many images.
        in_two_classes: Number of images that are in more than one class.
        all_decoded: Whether all images were decoded, so that those in other files, and ``alike``,
            are known.
    """

    leaked: tuple[int, ...]
    alike: tuple[int, ...]
    in_two_classes: int
    all_decoded: bool


def find_copies(parts: Sequence[Images], inspections: Sequence[FileInspection]) -> KnownCopies:
    """Return the copies among the images of one or two splits.

    Args:
        inspections: Inspection of each image, split by split.
    """
    paths = [path for images in parts for path in images.paths]
    labels = [images.class_names[label] for images in parts for label in images.labels]
    first = len(parts[0])
    sound = [at for at, inspection in enumerate(inspections) if not inspection.reason]
    all_decoded = all(inspections[at].decoded for at in sound)
    if all_decoded:
        groups = _grouped((inspections[at].pixels, at) for at in sound)
    else:
        same = _grouped((inspections[at].sample, at) for at in sound if inspections[at].sample)
        alike = [at for group in same if _matters(group, labels, first) for at in group]
        groups = _grouped((content, at) for at in alike if (content := _content(paths[at])))
    leaked = {at for group in groups if group[0] < first for at in group if at >= first}
    look_alike: set[int] = set()
    if all_decoded and len(parts) > 1 and len(sound) <= _MOST_COMPARED:
        pairs = _near(sound, inspections)
        look_alike = {late for early, late in pairs if early < first <= late} - leaked
    return KnownCopies(
        leaked=tuple(sorted(at - first for at in leaked)),
        alike=tuple(sorted(at - first for at in look_alike)),
        in_two_classes=sum(len({labels[at] for at in group}) > 1 for group in groups),
        all_decoded=all_decoded,
    )


def _grouped(keyed: Iterable[tuple[K, int]]) -> list[list[int]]:
    """Return the positions of each key that occurs more than once, in order."""
    positions: dict[K, list[int]] = {}
    for key, at in keyed:
        positions.setdefault(key, []).append(at)
    return [group for group in positions.values() if len(group) > 1]


def _matters(group: Sequence[int], labels: Sequence[str], first: int) -> bool:
    """Return whether positions are of more than one class or split."""
    return group[0] < first <= group[-1] or len({labels[at] for at in group}) > 1


def _content(path: Path) -> str:
    """Return a hash of the file, or an empty text if it cannot be read any more."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def _near(
    positions: Sequence[int], inspections: Sequence[FileInspection]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions, in order, of images that look alike."""
    hashed = [at for at in positions if inspections[at].phash is not None]
    hashes = np.array([inspections[at].phash for at in hashed], dtype=np.uint64)
    for one, other in near_pairs(hashes).pairs.tolist():
        yield hashed[one], hashed[other]
