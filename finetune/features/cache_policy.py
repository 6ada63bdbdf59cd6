"""Cache policy: whether and where features are cached."""

from __future__ import annotations

from pathlib import Path

from finetune.config.schema import FeaturesConfig
from finetune.core.memory import spare_memory_bytes
from finetune.core.reporter import Reporter
from finetune.features.cache_folder import cache_root, disk_limit, refused_writing
from finetune.features.extractor import FeatureExtractor
from finetune.freezing.graph_split import WORTH_KEEPING_BYTES

_READ_BYTES_PER_S = 500e6
"""Read speed of a common solid-state disk, in bytes per second."""

_MULTIPLY_ADDS_PER_S = {"cpu": 50e9}
_MULTIPLY_ADDS_PER_S_ELSEWHERE = 5e12
"""Approximate speed of a GPU; the value for ``cpu`` is that of two cores.

Fixed estimates, because a timing could decide differently from run to run, and cached features are
computed in other batches than fresh ones.
"""


def worth_keeping(extractor: FeatureExtractor, multiply_adds: int) -> bool:
    """Return whether reading an image's features is faster than decoding and computing them.

    Args:
        multiply_adds: Multiply-adds of the prefix for one image.
    """
    kind = extractor.device.type
    per_second = _MULTIPLY_ADDS_PER_S.get(kind, _MULTIPLY_ADDS_PER_S_ELSEWHERE)
    worth = WORTH_KEEPING_BYTES + _READ_BYTES_PER_S * multiply_adds / per_second
    return extractor.image_bytes <= worth


def decide_cache(
    config: FeaturesConfig,
    extractor: FeatureExtractor,
    rows_bytes: int,
    *,
    multiply_adds: int,
    reporter: Reporter,
) -> str:
    """Resolve ``features.cache``: ``auto`` becomes disk, memory or off for ``rows_bytes`` bytes.

    The reason for off is reported.
    """
    if config.cache != "auto":
        return config.cache
    if not worth_keeping(extractor, multiply_adds):
        reporter.say(
            f"features of {extractor.image_bytes / 2**20:.1f} MiB per image take longer to read "
            "than to compute again: not cached"
        )
        return "off"
    root: Path | None
    try:
        root = cache_root(config.dir)
    except OSError:  # there is no user cache folder
        root = None
    if root and rows_bytes <= disk_limit(root):
        refused = refused_writing(root)
        if refused is None:
            return "disk"
        reporter.warn(f"{root}: features cannot be cached there: {refused}; trying memory instead")
    if rows_bytes <= spare_memory_bytes():
        return "memory"
    reporter.say(
        f"features would take {rows_bytes / 2**30:.1f} GiB, more than a tenth of the free disk "
        "and a quarter of the memory: not cached; set features.dir to a folder on a larger disk"
    )
    return "off"
