"""Opens the feature store of a frozen computation."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

from finetune.config.schema import FeaturesConfig
from finetune.core.device import versions
from finetune.core.files import UNSUPPORTED
from finetune.core.reporter import Reporter
from finetune.core.text import mib, plural
from finetune.distributed.group import Group
from finetune.features.cache_folder import (
    cache_root,
    disk_limit,
    make_room,
    remove_unreadable,
    use,
)
from finetune.features.extractor import FeatureExtractor
from finetune.features.store import FORMAT, DiskStore, Places, RowLayout

_WITHOUT_SUPPORT = UNSUPPORTED | {errno.ENOLCK, errno.ENODEV}
"""Error numbers of a file system that has no locks or cannot map files."""


def lacks_support(error: OSError) -> bool:
    """Return whether the file system of the store has no locks or cannot map files."""
    return error.errno in _WITHOUT_SUPPORT


def layout_of(extractor: FeatureExtractor) -> RowLayout:
    """Return the layout of the rows that an extractor computes."""
    return RowLayout(extractor.crossing, extractor.form.precision, extractor.names)


def store_folder(extractor: FeatureExtractor, config: FeaturesConfig, only_of: str = "") -> Path:
    """Return the folder of the store of an extractor's rows.

    Raises:
        OSError: There is no user cache folder.
    """
    return cache_root(config.dir) / folder_name(extractor, only_of)


def folder_name(extractor: FeatureExtractor, only_of: str = "") -> str:
    """Return the name of the folder of an extractor's store, a hash of all that rows depend on."""
    layout = layout_of(extractor)
    described = description_of(extractor, only_of)
    text = json.dumps([FORMAT, described, layout.shapes, layout.dtype])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_store(
    extractor: FeatureExtractor, config: FeaturesConfig, reporter: Reporter, *, only_of: str = ""
) -> DiskStore:
    """Open the store of an extractor's rows; it is created if it does not exist.

    Args:
        only_of: What the rows are valid for, if not for all lists of photos.

    Raises:
        OSError: The store cannot be written, or its file system has no locks or cannot map files.
    """
    folder = store_folder(extractor, config, only_of)
    old = remove_unreadable(folder.parent)
    if old:
        size = mib(sum(store.num_bytes for store in old))
        reporter.detail(
            f"{folder.parent}: {plural(len(old), 'store')} of features that an earlier version of "
            f"finetune wrote, {size}, removed"
        )
    use(folder)
    return DiskStore(folder, layout_of(extractor), description_of(extractor, only_of))


def share_of(folder: Path, group: Group) -> tuple[int, int]:
    """Return the number of this process among those that fill a store, and their number.

    All processes of a run fill one store if they see the same folder, else those of each machine
    fill their own.
    """
    ranks = group.ranks
    if not group.are_several:
        return 0, 1
    name = f".tmp-{os.urandom(8).hex()}"
    if group.is_first:
        (folder / name).touch()
    name = group.first(lambda: name)
    in_common = all(group.gather((folder / name).exists()))
    if group.is_first:
        (folder / name).unlink(missing_ok=True)
    if in_common:
        return ranks.rank, ranks.size
    return ranks.local_rank, ranks.local_size


def make_room_for(store: DiskStore, rows: int, used: Places | None = None) -> None:
    """Make room for more rows within the size limit.

    Other stores are removed, the least recently used first; if that does not suffice, so are the
    rows of this store that are not used now.

    Args:
        used: Numbers of the rows that are used; None keeps all.

    Raises:
        OSError: The disk has less free space than the rows take.
    """
    root, num_bytes = store.folder.parent, rows * store.layout.num_bytes
    limit = disk_limit(root)
    if not make_room(root, num_bytes, limit=limit) and used is not None:
        store.keep_only(used[used >= 0])
    if shutil.disk_usage(root).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def description_of(extractor: FeatureExtractor, only_of: str = "") -> dict[str, str]:
    """Return the description of the computation of an extractor's rows."""
    return {
        "network": extractor.network,
        "cut": extractor.cut,
        "identity": extractor.identity,
        "preprocessing": extractor.preprocessing.model_dump_json(),
        "form": extractor.row_format,
        "versions": json.dumps(versions()),
        "only of": only_of,
    }
