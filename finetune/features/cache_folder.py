"""Cache folder: lists, limits and removes the feature stores on disk."""

from __future__ import annotations

import json
import mmap
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from finetune.core.files import exists, expand_user, refuse_without_home, user_cache
from finetune.core.locks import locked
from finetune.features.store import FORMAT, KEYS, META, ROW, RowLayout, own_files

_IN_USE: set[Path] = set()
"""Folders opened by this process, which `make_room` must not remove."""


def cache_root(configured: str | None) -> Path:
    """Return the folder of all stores: ``features.dir``, or one in the user's cache folder.

    Raises:
        OSError: there is no user cache folder.
        OutputError: ``features.dir`` is in the home folder of a user who has none.
    """
    if configured is not None:
        folder = expand_user(configured)
        refuse_without_home("features.dir", folder)
        return folder
    return user_cache() / "features"


@dataclass(frozen=True)
class StoredFeatures:
    """A store on disk."""

    folder: Path
    description: dict[str, str]
    num_bytes: int
    used_at: float
    """Time of last use, in seconds since the epoch."""
    is_readable: bool = True
    """Whether this version of finetune can read it."""
    layout: RowLayout | None = None
    """Layout of its rows; None if the description is damaged."""

    @property
    def num_photos(self) -> int:
        """Number of photos with features, damaged ones included."""
        try:
            content = (self.folder / KEYS).read_bytes()
        except OSError:
            return 0
        rows = np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], ROW)
        return len(np.unique(rows["photo"]))


def stored(root: Path) -> list[StoredFeatures]:
    """Return all stores in ``root``, least recently used first; links are not followed."""
    found = []
    try:
        metas = [meta for meta in root.glob(f"*/{META}") if not meta.parent.is_symlink()]
    except OSError:  # the folder is not accessible
        return []
    for meta in metas:
        content = _read_meta(meta.parent)
        if not isinstance(content, dict) or not {"format", "shapes", "dtype"} <= content.keys():
            continue
        if isinstance(content.get("description"), dict):
            try:
                num_bytes = sum(file.lstat().st_size for file in own_files(meta.parent))
                used_at = meta.stat().st_mtime
            except OSError:  # removed by another process
                continue
            words = {key: str(value) for key, value in content["description"].items()}
            readable = content["format"] == FORMAT
            layout = _layout(content)
            found.append(StoredFeatures(meta.parent, words, num_bytes, used_at, readable, layout))
    return sorted(found, key=lambda store: store.used_at)


def remove(store: StoredFeatures) -> None:
    """Delete a store's files, without following links, and its folder if nothing else is in it."""
    with suppress(FileNotFoundError):  # removed by another process
        for path in own_files(store.folder):
            path.unlink(missing_ok=True)
        if not any(store.folder.iterdir()):
            store.folder.rmdir()


def remove_unreadable(root: Path) -> list[StoredFeatures]:
    """Remove the stores that an earlier version of finetune has written, and return them."""
    old = [store for store in stored(root) if not store.is_readable]
    for store in old:
        with suppress(OSError):
            remove(store)
    return old


def make_room(root: Path, num_bytes: int, *, limit: int) -> bool:
    """Remove the least recently used stores until ``num_bytes`` more fit within ``limit``.

    Stores opened by this process are kept.

    Returns:
        Whether they fit.
    """
    stores = stored(root)
    used = sum(store.num_bytes for store in stores)
    for store in stores:
        if used + num_bytes <= limit:
            return True
        if store.folder in _IN_USE:
            continue
        remove(store)
        used -= store.num_bytes
    return used + num_bytes <= limit


def use(folder: Path) -> None:
    """Keep a store's folder from being removed by this process."""
    _IN_USE.add(folder)


def refused_writing(root: Path) -> str | None:
    """Return why stores cannot be written in ``root``, found by trying; None if they can.

    Some network and object-store mounts support files but not locking or memory-mapping them.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root) as file:
            file.truncate(1)
            mmap.mmap(file.fileno(), 1).close()
            with locked(file):
                return None
    except OSError as error:
        return error.strerror or str(error)


def disk_limit(root: Path) -> int:
    """Return the size limit of all stores: a tenth of the free space, their own counted as free."""
    existing = next(place for place in (root, *root.absolute().parents) if exists(place))
    used = sum(store.num_bytes for store in stored(root))
    try:
        return (shutil.disk_usage(existing).free + used) // 10
    except OSError:  # a mount that does not report its free space
        return 0


def _layout(meta: dict[str, Any]) -> RowLayout | None:
    try:
        shapes = tuple(tuple(int(size) for size in shape) for shape in meta["shapes"])
        return RowLayout(shapes, str(meta["dtype"]), tuple(map(str, meta.get("names", ()))))
    except (TypeError, ValueError, OverflowError):
        return None


def _read_meta(folder: Path) -> object:
    try:
        return json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
