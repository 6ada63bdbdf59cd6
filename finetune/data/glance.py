"""A quick look at data that no config describes yet; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from finetune.config_data import TABLE_COLUMNS, DataConfig
from finetune.data.images import shown_few
from finetune.data.quick_check import quick_check, sizes_of
from finetune.data.sources import find_train_val
from finetune.progress import Progress

_MOST_MEASURED = 2_000


@dataclass(frozen=True)
class Glance:
    """What there is.

    Attributes:
        counts: Training images of each class.
        median_size: Width and height, each in the median.
        median_aspect: The longer side over the shorter one.
        unreadable: How many files cannot be read, and which first.
        table: Keys of ``data`` that a table needs, with their values.
    """

    root: str
    num_train: int
    num_val: int
    held_out: bool
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    median_size: tuple[int, int]
    median_aspect: float
    num_unreadable: int = 0
    unreadable: str = ""
    table: Mapping[str, Any] = field(default_factory=dict)


def glance_at(data: DataConfig, progress: Progress) -> Glance:
    """Count the images as training will, and read the headers of the new ones.

    Raises:
        DataError: it cannot be trained on.
    """
    found = find_train_val(data, seed=0, progress=progress)
    for warning in found.warnings:
        progress.warn(warning)
    checked = quick_check(
        found.train, found.val, on_unreadable="skip", base=found.base, progress=progress
    )
    train, val = checked.parts
    sizes = sizes_of(train, _MOST_MEASURED, progress)
    return Glance(
        root=data.root,
        num_train=len(train),
        num_val=len(val),
        held_out=found.held_out,
        class_names=train.class_names,
        counts=tuple(train.counts()),
        median_size=(
            round(median(width for width, _ in sizes)),
            round(median(height for _, height in sizes)),
        ),
        median_aspect=median(max(size) / max(min(size), 1) for size in sizes),
        num_unreadable=len(checked.skipped),
        unreadable=shown_few([path for path, _ in checked.skipped], found.base),
        table=data.model_dump(include={*TABLE_COLUMNS, "table"}, exclude_defaults=True),
    )
