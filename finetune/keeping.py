"""Whether features are kept, where, and in which pieces."""

from __future__ import annotations

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

_DECODE_S = 0.002
"""A photo's decoding, about; so that without a timing `WORTH_KEEPING_BYTES` is the limit."""


def layout_of(computation: Computation, num_images: int, views: int) -> Layout:
    """How the features of a split are stored."""
    return Layout(
        rows=num_images * views,
        shapes=computation.crossing,
        dtype=computation.form.precision,
        block_rows=max(BLOCK_ROWS // views, 1) * views,
    )


def worth_keeping(computation: Computation, seconds: float | None) -> bool:
    """Whether reading an image's features takes less time than decoding and computing them.

    Args:
        seconds: What the prefix takes for an image, where it was timed.
    """
    if seconds is None:
        return computation.image_bytes <= WORTH_KEEPING_BYTES
    return computation.image_bytes / _READ_BYTES_PER_S < seconds + _DECODE_S


def decide_cache(
    config: FeaturesConfig,
    computation: Computation,
    rows_bytes: int,
    *,
    seconds: float | None,
    progress: Progress,
) -> str:
    """What ``auto`` means for so many bytes: disk, memory or off; says why it is off."""
    if config.cache != "auto":
        return config.cache
    if not worth_keeping(computation, seconds):
        progress.say(
            f"features of {computation.image_bytes / 2**20:.1f} MiB an image cost more to read "
            "than to compute again: not cached"
        )
        return "off"
    root = cache_root(config.dir)
    if rows_bytes <= disk_limit(root):
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
