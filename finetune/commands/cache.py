"""``finetune cache``: list or remove the feature stores on disk."""

from __future__ import annotations

from finetune.core.errors import OutputError
from finetune.features.store import cache_root, remove, stored
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
            root=store.description.get("root", ""),
            views=store.description.get("views", ""),
            form=store.description.get("form", ""),
            num_bytes=store.num_bytes,
            used_at=store.used_at,
        )
        for store in reversed(stored(root))
    ]
    return CacheList(str(root), tuple(rows), removed=False)


def clear_cache(folder: str | None = None) -> CacheList:
    """Remove all feature stores, and return the list of removed stores.

    Raises:
        OutputError: a file could not be removed.
    """
    found = list_cache(folder)
    for store in stored(cache_root(folder)) if found.stores else ():
        try:
            remove(store)
        except OSError as error:
            raise OutputError(
                f"cannot be removed: {error.strerror}", kind="output.unwritable", path=store.folder
            ) from error
    return CacheList(found.folder, found.stores, removed=True)
