"""``finetune cache``: the features that earlier runs keep on disk."""

from __future__ import annotations

from finetune.errors import OutputError
from finetune.feature_cache import cache_root, remove, stored
from finetune.results import CacheList, CacheRow


def list_cache(folder: str | None = None) -> CacheList:
    """Every store, the most recently used first; none where the user has no home folder."""
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
    """Remove every store, and return what was removed.

    Raises:
        OutputError: a file could not be removed.
    """
    found = list_cache(folder)
    for store in stored(cache_root(folder)) if found.stores else ():
        try:
            remove(store)
        except OSError as error:
            raise OutputError(f"{store.folder}: cannot be removed: {error.strerror}") from error
    return CacheList(found.folder, found.stores, removed=True)
