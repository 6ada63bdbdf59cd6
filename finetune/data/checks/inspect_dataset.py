"""Dataset inspection, stored in arrays: some hundred megabytes for a million images."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetune.core.cores import available_cores
from finetune.core.reporter import Reporter
from finetune.data.checks.inspect_file import FileInspection
from finetune.data.checks.inspection_cache import InspectionCache, key_of_file
from finetune.data.checks.worker_pool import inspect_all

_KEEP_EVERY_S = 2.0
_ASKED_AT_ONCE = 10_000


@dataclass
class DatasetInspection:
    """File inspections of all images of a dataset, by position.

    Attributes:
        kind: Index into ``kinds``; -1 if the image is unreadable or not inspected.
        pixels: Hash of the pixels, as two integers.
        has_phash: Whether ``phash`` is valid.
        tones: Shadows and highlights, as in `FileInspection`.
        kinds: Distinct pairs of format and mode.
        reasons: Reasons why images cannot be read, by position.
    """

    kind: NDArray[np.int16]
    size: NDArray[np.int32]
    frames: NDArray[np.int32]
    pixels: NDArray[np.uint64]
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]
    tones: NDArray[np.uint8]
    sharpness: NDArray[np.float32]
    kinds: list[tuple[str, str]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int) -> DatasetInspection:
        """Return an inspection of ``count`` images that contains no results yet."""
        return cls(
            kind=np.full(count, -1, dtype=np.int16),
            size=np.zeros((count, 2), dtype=np.int32),
            frames=np.ones(count, dtype=np.int32),
            pixels=np.zeros((count, 2), dtype=np.uint64),
            phash=np.zeros(count, dtype=np.uint64),
            has_phash=np.zeros(count, dtype=bool),
            tones=np.zeros((count, 2), dtype=np.uint8),
            sharpness=np.zeros(count, dtype=np.float32),
        )

    @property
    def readable(self) -> NDArray[np.int64]:
        """Positions of the readable images."""
        return np.flatnonzero(self.kind >= 0)

    def put(self, at: int, inspection: FileInspection) -> None:
        """Store the inspection of one file."""
        if inspection.reason is not None:
            self.reasons[at] = inspection.reason
            return
        kind = (inspection.format, inspection.mode)
        if kind not in self.kinds:
            self.kinds.append(kind)
        self.kind[at] = self.kinds.index(kind)
        self.size[at] = inspection.width, inspection.height
        self.frames[at] = inspection.frames
        self.tones[at] = inspection.shadows, inspection.highlights
        self.sharpness[at] = inspection.sharpness
        self.pixels[at] = np.frombuffer(inspection.pixels, dtype=np.uint64)
        if inspection.phash is not None:
            self.phash[at] = inspection.phash
            self.has_phash[at] = True


@dataclass(frozen=True)
class InspectedDataset:
    """Result of a dataset inspection, with the number of cached images and the throughput."""

    inspections: DatasetInspection
    num_cached: int
    images_per_s: float | None


def inspect_dataset(
    paths: Sequence[str], *, workers: int | None, fresh: bool, reporter: Reporter
) -> InspectedDataset:
    """Inspect every image fully: from the inspection cache, or in worker processes.

    Args:
        workers: Number of worker processes; None uses all available CPUs.
        fresh: Whether to ignore cached inspections.
    """
    with InspectionCache() as cache:
        inspections, keys, unknown = _known(paths, cache, fresh=fresh)
        begun = time.perf_counter()
        new = _inspect_and_store(paths, keys, unknown, workers or available_cores(), cache)
        with closing(new):
            for at, inspection in reporter.track(new, "check images", total=len(unknown)):
                inspections.put(at, inspection)
        elapsed_s = time.perf_counter() - begun
        if unknown:
            cache.forget_old()
    return InspectedDataset(
        inspections, len(paths) - len(unknown), len(unknown) / elapsed_s if unknown else None
    )


def known_inspections(paths: Sequence[str]) -> DatasetInspection | None:
    """Return the inspection of all images from the inspection cache; None if one is not in it."""
    with InspectionCache() as cache:
        inspections, _, unknown = _known(paths, cache, fresh=False)
    return None if unknown else inspections


def _known(
    paths: Sequence[str], cache: InspectionCache, *, fresh: bool
) -> tuple[DatasetInspection, list[bytes | None], list[int]]:
    """Return the cached inspections, the key of each image, and the positions of the others."""
    inspections = DatasetInspection.of(len(paths))
    keys: list[bytes | None] = []
    unknown: list[int] = []
    for start in range(0, len(paths), _ASKED_AT_ONCE):
        some = [key_of_file(path) for path in paths[start : start + _ASKED_AT_ONCE]]
        known = {} if fresh else cache.find(some)
        for at, key in enumerate(some, start=start):
            inspection = known.get(key) if key is not None else None
            if inspection is not None and inspection.decoded:
                inspections.put(at, inspection)
            else:
                unknown.append(at)
        keys += some
    return inspections, keys, unknown


def _inspect_and_store(
    paths: Sequence[str],
    keys: Sequence[bytes | None],
    unknown: Sequence[int],
    workers: int,
    cache: InspectionCache,
) -> Generator[tuple[int, FileInspection], None, None]:
    """Yield new inspections and cache them at intervals, so that an interrupted check resumes."""
    new: list[tuple[bytes | None, FileInspection]] = []
    kept_at = time.monotonic()
    try:
        for batch in inspect_all(paths, unknown, workers):
            new += [(keys[at], inspection) for at, inspection in batch]
            yield from batch
            if time.monotonic() - kept_at > _KEEP_EVERY_S:
                cache.keep(new)
                new = []
                kept_at = time.monotonic()
    finally:
        cache.keep(new)
