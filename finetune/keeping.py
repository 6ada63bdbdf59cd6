"""Whether features are kept, where, and in which pieces."""

from __future__ import annotations

from pathlib import Path

from finetune.computation import Computation
from finetune.config import FeaturesConfig
from finetune.feature_cache import Layout, cache_root, disk_limit, refused_writing
from finetune.progress import Progress
from finetune.runtime import spare_memory_bytes
from finetune.split import WORTH_KEEPING_BYTES

BLOCK_ROWS = 32
"""Rows computed together: a value depends on its batch in the last bits, so batches are fixed."""

_READ_BYTES_PER_S = 500e6
"""Of a plain solid-state disk."""

_MULTIPLY_ADDS_PER_S = {"cpu": 50e9}
_MULTIPLY_ADDS_PER_S_ELSEWHERE = 5e12
"""What two cores, and a GPU, do about. An estimate, since features that are kept were computed in
other batches than those that are not, and a timing would decide otherwise from run to run."""


def layout_of(computation: Computation, num_images: int, views: int) -> Layout:
    """How the features of a split are stored."""
    return Layout(
        rows=num_images * views,
        shapes=computation.crossing,
        dtype=computation.form.precision,
        block_rows=max(BLOCK_ROWS // views, 1) * views,
    )


def worth_keeping(computation: Computation, multiply_adds: int) -> bool:
    """Whether reading an image's features takes less time than decoding and computing them.

    Args:
        multiply_adds: Those of the prefix, for one image.
    """
    kind = computation.device.type
    per_second = _MULTIPLY_ADDS_PER_S.get(kind, _MULTIPLY_ADDS_PER_S_ELSEWHERE)
    worth = WORTH_KEEPING_BYTES + _READ_BYTES_PER_S * multiply_adds / per_second
    return computation.image_bytes <= worth


def decide_cache(
    config: FeaturesConfig,
    computation: Computation,
    rows_bytes: int,
    *,
    multiply_adds: int,
    progress: Progress,
) -> str:
    """What ``auto`` means for so many bytes: disk, memory or off; says why it is off."""
    if config.cache != "auto":
        return config.cache
    if not worth_keeping(computation, multiply_adds):
        progress.say(
            f"features of {computation.image_bytes / 2**20:.1f} MiB an image cost more to read "
            "than to compute again: not cached"
        )
        return "off"
    root: Path | None
    try:
        root = cache_root(config.dir)
    except OSError:  # said where it was found
        root = None
    if root and rows_bytes <= disk_limit(root):
        refused = refused_writing(root)
        if refused is None:
            return "disk"
        progress.warn(f"{root}: features cannot be kept there: {refused}; memory is tried instead")
    if rows_bytes <= spare_memory_bytes():
        return "memory"
    progress.say(
        f"features would take {rows_bytes / 2**30:.1f} GiB, more than a tenth of the free disk "
        "and a quarter of the memory: not cached; features.dir may name a larger disk"
    )
    return "off"
