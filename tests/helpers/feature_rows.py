"""Small rows of features whose values say which photo they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.features.photo_keys import as_keys
from finetune.features.store import DiskStore, Keys, RowLayout

LAYOUT = RowLayout(shapes=((7,), (2, 3)), dtype="float32")
DESCRIPTION = {"network": "x", "cut": "y"}


def opened(folder: Path) -> DiskStore:
    return DiskStore(folder, LAYOUT, DESCRIPTION)


def keys_of(numbers: Sequence[int]) -> Keys:
    return as_keys(b"".join(hashlib.md5(str(number).encode()).digest() for number in numbers))


def features_of(numbers: Sequence[int]) -> list[Tensor]:
    """What is computed for these photos."""
    values = torch.tensor(numbers, dtype=torch.float32)
    return [values[:, None] + torch.arange(7) / 8, values[:, None, None] - torch.ones(2, 3)]


def append(store: DiskStore, numbers: Sequence[int]) -> None:
    photos = np.array(numbers, np.uint64)
    store.append(keys_of(numbers), photos, features_of(numbers))


def fill(store: DiskStore, numbers: Sequence[int], *, block: int = 8) -> int:
    """Add the rows that the store lacks, and return how many these were."""
    places = store.find(keys_of(numbers))
    missing = [number for number, place in zip(numbers, places, strict=True) if place < 0]
    for start in range(0, len(missing), block):
        append(store, missing[start : start + block])
    return len(missing)


def missing_from(store: DiskStore, numbers: Sequence[int]) -> list[int]:
    places = store.find(keys_of(numbers))
    return [number for number, place in zip(numbers, places, strict=True) if place < 0]


def wrong_rows(store: DiskStore, numbers: Sequence[int]) -> int:
    """Number of rows that the store gives out and that are not what was computed."""
    places = store.find(keys_of(numbers))
    there = torch.from_numpy(places >= 0)
    rows = torch.from_numpy(places[places >= 0])
    wrong = torch.zeros(len(rows), dtype=torch.bool)
    for tensor, right in zip(store.tensors(), features_of(numbers), strict=True):
        wrong |= (tensor[rows] != right[there]).flatten(1).any(dim=1)
    return int(wrong.sum())
