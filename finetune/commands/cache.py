"""``finetune cache``: list or remove the feature stores on disk."""

from __future__ import annotations

import math
import time

from finetune.core.errors import OutputError
from finetune.features.cache_folder import cache_root, remove, stored
from finetune.results.catalog import CacheList, CacheRow


def list_cache(folder: str | None = None) -> CacheList:
    """List all feature stores, most recently used first; empty if there is no home folder."""
    try:
        root = cache_root(folder)
    except OSError:
        return CacheList("(no home folder)", (), removed=False)
    rows = [
        CacheRow(
            key=store.folder.name,
            network=store.description.get("network", ""),
            cut=store.description.get("cut", ""),
            form=store.description.get("form", ""),
            photos=store.num_photos,
            num_bytes=store.num_bytes,
            used_at=store.used_at,
        )
        for store in reversed(stored(root))
    ]
    return CacheList(str(root), tuple(rows), removed=False)


def clear_cache(folder: str | None = None, *, unused_days: float | None = None) -> CacheList:
    """Remove feature stores, and return the list of removed stores.

    Args:
        unused_days: Number of days since the last use of the stores to remove; None removes all.

    Raises:
        OutputError: a file could not be removed.
    """
    before = math.inf if unused_days is None else time.time() - unused_days * 86_400
    found = list_cache(folder)
    rows = tuple(row for row in found.stores if row.used_at <= before)
    for store in stored(cache_root(folder)) if rows else ():
        if store.used_at > before:
            continue
        try:
            remove(store)
        except OSError as error:
            raise OutputError(
                f"cannot be removed: {error.strerror}", kind="output.unwritable", path=store.folder
            ) from error
    return CacheList(found.folder, rows, removed=True)
