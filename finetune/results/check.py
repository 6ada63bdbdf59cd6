"""Results of ``check-data``; `finetune.report` renders them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Problem found in the data.

    Attributes:
        level: error (training or its metrics would be wrong), warning or note.
        count: Number of occurrences of what the title names; ``examples`` may be fewer.
    """

    kind: str
    level: str
    title: str
    why: str
    todo: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitRow:
    """Split; ``held_out`` if it would be drawn from the training images."""

    name: str
    num_images: int
    num_classes: int
    held_out: bool


@dataclass(frozen=True)
class ClassRow:
    """Class; ``counts`` are its images per split, in the order of the splits."""

    name: str
    num_images: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SizeRow:
    """Width and height of the smallest, median and largest image, ordered by area."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class CheckReport:
    """Report on a data set.

    Attributes:
        sizes: Image sizes; None if no image can be read.
        num_remembered: Number of images whose inspection was read from the inspection cache.
        images_per_s: Inspection speed, without cached inspections; None if all were cached.
        ok: Whether no finding is an error.
        files: Paths of the page and the table that ``--report`` writes.
    """

    data: str
    num_images: int
    num_readable: int
    splits: tuple[SplitRow, ...]
    classes: tuple[ClassRow, ...]
    sizes: SizeRow | None
    formats: dict[str, int]
    modes: dict[str, int]
    findings: tuple[Finding, ...]
    num_remembered: int
    elapsed_s: float
    images_per_s: float | None
    ok: bool
    files: tuple[str, ...] = ()
