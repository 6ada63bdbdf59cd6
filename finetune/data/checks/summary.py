"""Summary of a dataset that has no config yet; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from finetune.config.data import TABLE_COLUMNS, DataConfig
from finetune.core.reporter import Reporter
from finetune.core.text import plural
from finetune.data.checks.preflight import preflight_check, sizes_of
from finetune.data.images import shown_few
from finetune.data.sources.open import find_train_val

_MOST_MEASURED = 2_000


@dataclass(frozen=True)
class DatasetSummary:
    """Summary of a dataset.

    Attributes:
        counts: Number of training images of each class.
        median_size: Median width and median height.
        median_aspect: Median ratio of the longer side to the shorter one.
        num_unreadable: Number of files that cannot be read.
        unreadable: First few of these files.
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


def summarize_dataset(data: DataConfig, reporter: Reporter) -> DatasetSummary:
    """Count the images as training does, and read the headers of new ones.

    Raises:
        DataError: The data cannot be used for training.
    """
    reporter.status("listing the images")
    found = find_train_val(data, seed=0, reporter=reporter)
    for warning in found.warnings:
        reporter.warn(warning)
    checked = preflight_check(
        found.train, found.val, on_unreadable="skip", base=found.base, reporter=reporter
    )
    if checked.skipped:
        some = shown_few([path for path, _ in checked.skipped], found.base)
        reporter.warn(
            f"{plural(len(checked.skipped), 'file')} cannot be read: {some}; the config "
            "leaves out such files (data.on_unreadable: skip). `finetune check-data` names the "
            "reasons"
        )
    train, val = checked.parts
    sizes = sizes_of(train, _MOST_MEASURED, reporter)
    return DatasetSummary(
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
