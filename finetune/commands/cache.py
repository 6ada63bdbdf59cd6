"""``finetune cache``: list or remove the feature stores on disk."""

from __future__ import annotations

import math
import time

from finetune.core.errors import OutputError
from finetune.features.cache_folder import StoredFeatures, cache_root, remove, stored
from finetune.results.catalog import CacheList, CacheRow

_NO_HOME = "(no home folder)"


def list_cache(folder: str | None = None) -> CacheList:
    """List all feature stores, most recently used first; empty if there is no home folder."""
    try:
        root = cache_root(folder)
    except OSError:
        return CacheList(_NO_HOME, (), removed=False)
    return CacheList(str(root), tuple(map(_row, reversed(stored(root)))), removed=False)


def clear_cache(folder: str | None = None, *, unused_days: float | None = None) -> CacheList:
    """Remove feature stores, and return the list of removed stores.

    Args:
        unused_days: Number of days since the last use of the stores to remove; None removes all.

    Raises:
        OutputError: a file could not be removed.
    """
    before = math.inf if unused_days is None else time.time() - unused_days * 86_400
    try:
        root = cache_root(folder)
    except OSError:
        return CacheList(_NO_HOME, (), removed=True)
    stores = [store for store in reversed(stored(root)) if store.used_at <= before]
    rows = tuple(map(_row, stores))
    for store in stores:
        try:
            remove(store)
        except OSError as error:
            raise OutputError(
                f"cannot be removed: {error.strerror}", kind="output.unwritable", path=store.folder
            ) from error
    return CacheList(str(root), rows, removed=True)


def _row(store: StoredFeatures) -> CacheRow:
    return CacheRow(
        key=store.folder.name,
        network=store.description.get("network", ""),
        cut=store.description.get("cut", ""),
        form=store.description.get("form", ""),
        photos=store.num_photos,
        num_bytes=store.num_bytes,
        used_at=store.used_at,
    )
