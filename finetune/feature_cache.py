"""Features on disk or in memory: filled block by block, each with a checksum, read by row.

A store is a folder: ``meta.json`` says what it holds, ``N.bin`` are plain arrays of rows, and
``blocks.log`` has a line for each block that is whole, with its CRC-32. A block without a line, or
whose bytes disagree, is computed again; so an interrupted filling goes on where it stopped, and a
half-filled store is never taken for a whole one. Files are mapped, not read: the memory they take
is the system's page cache, which it takes back at need.
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

from finetune.files import exists, expand_user, user_cache, write_text
from finetune.mapped import allocated, mapped, reserve

FORMAT = 1
ORIGIN = "root"
"""Key of the photos' folder in a description: for people, no part of what a store is."""
_IN_USE: set[Path] = set()
"""Folders that this process has opened: a run's training features, while it fills the others."""

_META = "meta.json"
_LOG = "blocks.log"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OWN_FILE = re.compile(rf"{re.escape(_META)}|{re.escape(_LOG)}|\d+\.bin|\.tmp-\w+")
"""What a store is made of; anything else in its folder is somebody's own."""
_LOG_LINE = re.compile(r"(\d{1,18}) ([0-9a-f]{8})")
"""A block and its CRC-32."""


@dataclass(frozen=True)
class Layout:
    """Rows of one or several tensors.

    Attributes:
        rows: One for each view of each image: ``image * views + view``.
        shapes: Of one row of each tensor.
        block_rows: Rows that are computed together, always the same ones.
    """

    rows: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    block_rows: int

    @property
    def num_blocks(self) -> int:
        """The last one may be shorter."""
        return -(-self.rows // self.block_rows)

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        size = _DTYPES[self.dtype].itemsize
        return self.rows * size * sum(torch.Size(shape).numel() for shape in self.shapes)

    def rows_of(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))


class FeatureStore:
    """Features of one split; ``folder`` is None for features kept in memory only."""

    def __init__(self, layout: Layout, folder: Path | None, description: dict[str, str]) -> None:
        self.layout = layout
        self.folder = folder
        self.damaged = 0
        """Blocks that had been written and whose bytes disagree."""
        self.computed = 0
        """Blocks that were put since it was opened."""
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
        """Blocks that are still to be computed."""
        return [block for block in range(self.layout.num_blocks) if block not in self._whole]

    def put(self, block: int, features: Sequence[Tensor]) -> None:
        """Store a block's rows, then say that it is whole."""
        rows = self.layout.rows_of(block)
        for tensor, values in zip(self.tensors, features, strict=True):
            tensor[rows] = values
        self._whole.add(block)
        self.computed += 1
        if self.folder is not None:
            with (self.folder / _LOG).open("a", encoding="ascii") as log:
                # A line that a kill cut short must not swallow this one.
                log.write(f"\n{block} {self._checksum(block):08x}\n")

    def take(self, rows: Tensor) -> list[Tensor]:
        """Copies of these rows, in this order."""
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
        # First, so that every list of stores knows of it, whatever becomes of the rest.
        if _read_meta(folder) is None:
            write_text(folder / _META, json.dumps(meta))
        else:
            (folder / _META).touch()  # the least recently used store is the first to go
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
                    for other in folder.glob("*.bin"):  # of no use without this one
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
    """Whether a store holds what is wanted, wherever the photos lay when it was filled."""
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
    """What a store's folder holds of the store itself."""
    return [
        path
        for path in folder.iterdir()
        if _OWN_FILE.fullmatch(path.name) and (path.is_symlink() or not path.is_dir())
    ]


def _remove_links(folder: Path) -> None:
    """Links in a store's place, or in its files': what they lead to is somebody else's, and would
    be overwritten."""
    links = [folder] if folder.is_symlink() else _own_files(folder) if folder.is_dir() else []
    for path in links:
        if path.is_symlink():
            path.unlink()


def cache_root(configured: str | None) -> Path:
    """Where stores are: ``features.dir``, or the user's cache folder.

    Raises:
        OSError: the user has none.
    """
    if configured is not None:
        return expand_user(configured)
    return user_cache() / "features"


@dataclass(frozen=True)
class StoredFeatures:
    """One store as it lies on disk."""

    folder: Path
    description: dict[str, str]
    num_bytes: int
    used_at: float
    """Seconds since the epoch."""


def stored(root: Path) -> list[StoredFeatures]:
    """Every store below ``root``, the least recently used first; links are not followed."""
    found = []
    try:
        metas = [meta for meta in root.glob(f"*/{_META}") if not meta.parent.is_symlink()]
    except OSError:  # a place that the system refuses
        return []
    for meta in metas:
        content = _read_meta(meta.parent)
        if not isinstance(content, dict) or "block_rows" not in content:
            continue
        if isinstance(content.get("description"), dict):
            try:
                num_bytes = sum(file.lstat().st_size for file in _own_files(meta.parent))
                used_at = meta.stat().st_mtime
            except OSError:  # another process has just removed it
                continue
            words = {key: str(value) for key, value in content["description"].items()}
            found.append(StoredFeatures(meta.parent, words, num_bytes, used_at))
    return sorted(found, key=lambda store: store.used_at)


def remove(store: StoredFeatures) -> None:
    """Delete a store: the files it is made of, links among them as such, and the folder if nothing
    else lies there."""
    with suppress(FileNotFoundError):  # another process was faster
        for path in _own_files(store.folder):
            path.unlink(missing_ok=True)
        if not any(store.folder.iterdir()):
            store.folder.rmdir()


def make_room(root: Path, num_bytes: int, *, limit: int) -> None:
    """Remove the least recently used stores until ``num_bytes`` more stay below ``limit``; those
    that this process has open stay."""
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
    """Why no store can be kept below ``root``, found by trying; None where it can.

    Some network and object-store mounts take files but cannot map them.
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
    """Bytes that features may take: a tenth of what is free, what they take now counted as free."""
    existing = next(place for place in (root, *root.absolute().parents) if exists(place))
    used = sum(store.num_bytes for store in stored(root))
    try:
        return (shutil.disk_usage(existing).free + used) // 10
    except OSError:  # a mount that does not tell
        return 0
