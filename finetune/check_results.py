"""What ``finetune check-data`` found out, as plain data; `finetune.report` renders it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing about the data that deserves attention.

    Attributes:
        level: error (training or its figures would be wrong), warning or note.
        count: Of what the title speaks of; ``examples`` may be fewer.
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
    """A split; ``held_out`` where it would be drawn from the training images."""

    name: str
    num_images: int
    num_classes: int
    held_out: bool


@dataclass(frozen=True)
class ClassRow:
    """A class; ``counts`` in the order of the splits."""

    name: str
    num_images: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SizeRow:
    """Width and height of the smallest, the median and the largest image by shorter side."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class CheckReport:
    """The state of a data set.

    Attributes:
        sizes: None where no image can be read.
        num_remembered: Images that an earlier run had looked at.
        images_per_s: Of those that this run looked at; None where there were none.
        ok: No finding is an error.
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
