"""Feature store on disk or in memory: written in blocks with checksums, read by row.

A store is a folder: ``meta.json`` describes its content, ``N.bin`` are plain arrays of rows, and
``blocks.log`` has a line with the CRC-32 of each complete block. A block without a line, or with a
wrong checksum, is computed again, so that an interrupted filling is resumed and an incomplete store
is never used as a complete one. The files are memory-mapped, so that they use only the page cache,
which the system can reclaim.
"""

from __future__ import annotations

import json
import mmap
import re
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from finetune.core.files import exists, expand_user, refuse_without_home, user_cache, write_text
from finetune.core.memory_mapped_files import allocated, mapped, reserve

FORMAT = 1
ORIGIN = "root"
"""Key of the images' folder in a description; informative, and not compared."""
_IN_USE: set[Path] = set()
"""Folders opened by this process, which `make_room` must not remove."""

_META = "meta.json"
_LOG = "blocks.log"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OWN_FILE = re.compile(rf"{re.escape(_META)}|{re.escape(_LOG)}|\d+\.bin|\.tmp-\w+")
"""Names of a store's files; other files in its folder are not touched."""
_LOG_LINE = re.compile(r"(\d{1,18}) ([0-9a-f]{8})")
"""Block number and its CRC-32."""


@dataclass(frozen=True)
class Layout:
    """Layout of the rows of one or several tensors.

    Attributes:
        rows: Number of rows, one per view of each image: row ``image * views + view``.
        shapes: Shape of one row of each tensor.
        dtype: Name of the dtype, float32 or bfloat16.
        block_rows: Number of rows in a block, which are always computed together.
    """

    rows: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    block_rows: int

    @property
    def num_blocks(self) -> int:
        """Number of blocks; the last one may be shorter."""
        return -(-self.rows // self.block_rows)

    @property
    def num_bytes(self) -> int:
        """Size of all rows, in bytes."""
        size = _DTYPES[self.dtype].itemsize
        return self.rows * size * sum(torch.Size(shape).numel() for shape in self.shapes)

    def rows_of(self, block: int) -> slice:
        """Return the rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))


class FeatureStore:
    """Features of one split, in ``folder``, or in memory if it is None."""

    def __init__(self, layout: Layout, folder: Path | None, description: dict[str, str]) -> None:
        self.layout = layout
        self.folder = folder
        self.damaged = 0
        """Number of written blocks with a wrong checksum."""
        self.computed = 0
        """Number of blocks written since the store was opened."""
        self._whole: set[int] = set()
        if folder is None:
            dtype = _DTYPES[layout.dtype]
            self.tensors = [
                torch.empty(layout.rows, *shape, dtype=dtype) for shape in layout.shapes
            ]
            return
        self._open_folder(folder, description)
        self.tensors = [
            mapped(folder / f"{i}.bin", (layout.rows, *shape), _DTYPES[layout.dtype])
            for i, shape in enumerate(layout.shapes)
        ]
        self._check_blocks(folder)

    @property
    def missing(self) -> list[int]:
        """Blocks that have not been computed yet."""
        return [block for block in range(self.layout.num_blocks) if block not in self._whole]

    def put(self, block: int, features: Sequence[Tensor]) -> None:
        """Write a block's rows, then log it as complete."""
        rows = self.layout.rows_of(block)
        for tensor, values in zip(self.tensors, features, strict=True):
            tensor[rows] = values
        self._whole.add(block)
        self.computed += 1
        if self.folder is not None:
            with (self.folder / _LOG).open("a", encoding="ascii") as log:
                # The leading newline ends a line that an earlier process left incomplete.
                log.write(f"\n{block} {self._checksum(block):08x}\n")

    def take(self, rows: Tensor) -> list[Tensor]:
        """Return copies of the given rows, in the given order."""
        return [tensor[rows] for tensor in self.tensors]

    def _open_folder(self, folder: Path, description: dict[str, str]) -> None:
        meta = {
            "format": FORMAT,
            "rows": self.layout.rows,
            "shapes": [list(shape) for shape in self.layout.shapes],
            "dtype": self.layout.dtype,
            "block_rows": self.layout.block_rows,
            "description": description,
        }
        _remove_links(folder)
        if folder.exists() and not _describes(_read_meta(folder), meta):
            self.damaged = 1
            for path in _own_files(folder):
                path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Written first, so that the store is listed even if the rest fails.
        if _read_meta(folder) is None:
            write_text(folder / _META, json.dumps(meta))
        else:
            (folder / _META).touch()  # its mtime is the time of last use
        _IN_USE.add(folder)
        size = _DTYPES[self.layout.dtype].itemsize
        for i, shape in enumerate(self.layout.shapes):
            path = folder / f"{i}.bin"
            path.touch()
            num_bytes = self.layout.rows * torch.Size(shape).numel() * size
            if allocated(path) < num_bytes or path.stat().st_size != num_bytes:
                try:
                    reserve(path, num_bytes)
                except OSError:
                    for other in folder.glob("*.bin"):  # unusable without this one
                        other.unlink(missing_ok=True)
                    raise

    def _check_blocks(self, folder: Path) -> None:
        log = folder / _LOG
        expected: dict[int, str] = {}
        if log.exists():
            for line in log.read_text(encoding="ascii", errors="replace").splitlines():
                found = _LOG_LINE.fullmatch(line)
                if found and int(found[1]) < self.layout.num_blocks:
                    expected[int(found[1])] = found[2]
        for written, stated in expected.items():
            if f"{self._checksum(written):08x}" == stated:
                self._whole.add(written)
            else:
                self.damaged += 1

    def _checksum(self, block: int) -> int:
        checksum = 0
        for tensor in self.tensors:
            rows = tensor[self.layout.rows_of(block)].reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(rows.numpy().data, checksum)
        return checksum


def _describes(found: object, wanted: dict[str, Any]) -> bool:
    """Return whether two descriptions agree, apart from the images' folder."""
    if not isinstance(found, dict) or not isinstance(found.get("description"), dict):
        return False
    there = found | {"description": found["description"] | {ORIGIN: None}}
    return there == wanted | {"description": wanted["description"] | {ORIGIN: None}}


def _read_meta(folder: Path) -> object:
    try:
        return json.loads((folder / _META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _own_files(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to the store."""
    return [
        path
        for path in folder.iterdir()
        if _OWN_FILE.fullmatch(path.name) and (path.is_symlink() or not path.is_dir())
    ]


def _remove_links(folder: Path) -> None:
    """Remove symbolic links in place of a store or its files, so that no target is overwritten."""
    links = [folder] if folder.is_symlink() else _own_files(folder) if folder.is_dir() else []
    for path in links:
        if path.is_symlink():
            path.unlink()


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


def stored(root: Path) -> list[StoredFeatures]:
    """Return all stores in ``root``, least recently used first; links are not followed."""
    found = []
    try:
        metas = [meta for meta in root.glob(f"*/{_META}") if not meta.parent.is_symlink()]
    except OSError:  # the folder is not accessible
        return []
    for meta in metas:
        content = _read_meta(meta.parent)
        if not isinstance(content, dict) or "block_rows" not in content:
            continue
        if isinstance(content.get("description"), dict):
            try:
                num_bytes = sum(file.lstat().st_size for file in _own_files(meta.parent))
                used_at = meta.stat().st_mtime
            except OSError:  # removed by another process
                continue
            words = {key: str(value) for key, value in content["description"].items()}
            found.append(StoredFeatures(meta.parent, words, num_bytes, used_at))
    return sorted(found, key=lambda store: store.used_at)


def remove(store: StoredFeatures) -> None:
    """Delete a store's files, without following links, and its folder if nothing else is in it."""
    with suppress(FileNotFoundError):  # removed by another process
        for path in _own_files(store.folder):
            path.unlink(missing_ok=True)
        if not any(store.folder.iterdir()):
            store.folder.rmdir()


def make_room(root: Path, num_bytes: int, *, limit: int) -> None:
    """Remove the least recently used stores until ``num_bytes`` more fit within ``limit``.

    Stores opened by this process are kept.
    """
    stores = stored(root)
    used = sum(store.num_bytes for store in stores)
    for store in stores:
        if used + num_bytes <= limit:
            return
        if store.folder in _IN_USE:
            continue
        remove(store)
        used -= store.num_bytes


def refused_writing(root: Path) -> str | None:
    """Return why stores cannot be written in ``root``, found by trying; None if they can.

    Some network and object-store mounts support files but not memory-mapping them.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root) as file:
            file.truncate(1)
            mmap.mmap(file.fileno(), 1).close()
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
