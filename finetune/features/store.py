"""Feature store: one row of features for each photo and view, on disk or in memory.

A store on disk is a folder for one frozen computation. Rows are appended and never moved, and a row
is found by a key that names a photo and a view, so that it does not depend on splits, classes, the
order of the photos or their folder.

========== =====================================================================================
meta.json  description of the computation, for people, `finetune cache list` and
           `finetune.features.earlier_cut`; its modification time is the time of last use
N.bin      the rows of the N-th feature tensor, one after the other
keys.bin   for each row its key, and a number that is the same for all views of a photo
blocks.bin for each block of rows that were written together: first row, number of rows, CRC-32
index.bin  the keys in ascending order (`finetune.features.row_index`)
lock       locked while a block is written
========== =====================================================================================

Append-only files with an index were chosen over SQLite: a block is complete once its entry in
``blocks.bin`` is written, so that a killed process loses at most the block that it was writing and
there is no journal to replay; the CRC-32 of a block covers its keys and its rows, which SQLite does
not offer; the rows of a batch are gathered from one memory-mapped tensor; and millions of keys are
looked up at once with numpy.

Nothing is believed that a checksum does not cover. The entries in ``blocks.bin`` have a checksum of
their own, a block is verified when one of its rows is first asked for, and a row counts only if its
key is the one that was asked for. A damaged block is struck out of ``blocks.bin``, and its rows are
appended again when they are needed.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.core.files import write_text
from finetune.core.locks import locked
from finetune.core.memory_mapped_files import as_tensor, mapped
from finetune.features.row_index import FILE as INDEX
from finetune.features.row_index import RowIndex

FORMAT = 2
META = "meta.json"
KEYS, BLOCKS, LOCK = "keys.bin", "blocks.bin", "lock"
_OWN_NAME = re.compile(
    "|".join(map(re.escape, (META, KEYS, BLOCKS, LOCK, INDEX, "blocks.log")))  # format 1 had a .log
    + r"|\d+\.bin|\.tmp-\w+"
)
"""Names of a store's files; other files in its folder are not touched."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Keys = NDArray[np.uint64]
"""Keys of rows, ``(n, 2)``."""
Places = NDArray[np.int64]
"""Numbers of rows in a store; -1 where it has none."""

ROW = np.dtype([("key", "<u8", 2), ("photo", "<u8")])
"""A row's key, and the number of its photo."""
_BLOCK = np.dtype([("start", "<u8"), ("rows", "<u4"), ("crc", "<u4"), ("check", "<u8")])
_AT_ONCE = 2**16
_COPIED_ROWS = 2**8
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd factors of the checksum of a block's entry, from xxHash (Collet)."""


@dataclass(frozen=True)
class RowLayout:
    """Layout of one row.

    Attributes:
        shapes: Shape of each feature tensor, for one image.
        dtype: Name of the dtype, one of `DTYPES`.
        names: Name of each feature tensor in the network's graph; empty if it is not known.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    names: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Bytes of a row, for each tensor."""
        size = DTYPES[self.dtype].itemsize
        return [torch.Size(shape).numel() * size for shape in self.shapes]

    @property
    def num_bytes(self) -> int:
        """Bytes of a row, with its key."""
        return sum(self.sizes) + ROW.itemsize


class RowStore(Protocol):
    """Rows of features by key."""

    damaged: int
    """Number of blocks with a wrong checksum that were met so far."""

    def find(self, keys: Keys) -> Places:
        """Return the numbers of the rows that are there and undamaged, -1 for the others."""

    def append(self, keys: Keys, photos: NDArray[np.uint64], features: Sequence[Tensor]) -> None:
        """Add rows, without those that another process has added in the meantime."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all rows, ``(rows, *shape)`` for each feature tensor."""

    def save_index(self) -> None:
        """Note where the rows are, for faster opening."""


class MemoryStore:
    """Rows in memory; the key of the N-th of them is ``(N, 0)``."""

    damaged = 0

    def __init__(self, layout: RowLayout, rows: int) -> None:
        self._there = np.zeros(rows, np.bool_)
        dtype = DTYPES[layout.dtype]
        self._tensors = tuple(torch.empty(rows, *shape, dtype=dtype) for shape in layout.shapes)

    def find(self, keys: Keys) -> Places:
        """Return the numbers of the rows that are there, -1 for the others."""
        numbers = keys[:, 0].astype(np.int64)
        return np.where(self._there[numbers], numbers, -1)

    def append(self, keys: Keys, photos: NDArray[np.uint64], features: Sequence[Tensor]) -> None:  # noqa: ARG002
        """Add rows."""
        numbers = keys[:, 0].astype(np.int64)
        for tensor, values in zip(self._tensors, features, strict=True):
            tensor[torch.from_numpy(numbers)] = values
        self._there[numbers] = True

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all rows."""
        return self._tensors

    def save_index(self) -> None:
        """Do nothing."""


class DiskStore:
    """Rows in a folder, which several processes may read and add to at the same time.

    Raises:
        OSError: The folder cannot be written, or its file system has no locks or cannot map files.
    """

    def __init__(self, folder: Path, layout: RowLayout, description: Mapping[str, str]) -> None:
        self.folder = folder
        self.layout = layout
        self.damaged = 0
        meta: dict[str, object] = {
            "format": FORMAT,
            "shapes": [list(shape) for shape in layout.shapes],
            "dtype": layout.dtype,
            "description": dict(description),
        }
        text = json.dumps(meta)
        # Part of every checksum: rows of another computation count as damaged.
        self._seed = zlib.crc32(text.encode())
        self._description = description
        if layout.names:  # in no checksum: the rows are the same where the names are not known
            text = json.dumps(meta | {"names": layout.names})
        remove_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Written first, so that the store is listed even if the rest fails.
        if _text(folder / META) != text:
            write_text(folder / META, text)
        else:
            os.utime(folder / META)  # the time of last use
        self._open()

    def _open(self) -> None:
        folder = self.folder
        self._lock = _opened(folder / LOCK)
        files = [self._lock]
        self._closing = weakref.finalize(self, _close, files)
        with locked(self._lock):  # files are not being replaced
            for name in (BLOCKS, KEYS, *_row_files(self.layout)):
                files.append(_opened(folder / name))
        _, self._log, self._keys, *self._files = files
        self._index = RowIndex(folder)
        self._read = 0
        """Bytes of the log that were read."""
        self._end = 0
        """Number of rows with an entry in the log."""
        self._blocks = np.empty(0, _BLOCK)
        self._verified = np.empty(0, np.bool_)
        self._entries = np.empty(0, np.int64)
        """Where in the log the entry of each block is."""
        self._new, self._new_entries = bytearray(), bytearray()
        """Blocks, and where in the log their entries are, since the log was last gone through."""
        self._others: set[int] = set()
        """First eight bytes of the keys that other processes have added since rows were last looked
        for. A row that is left out because only these bytes are equal is missing afterwards."""
        self._maps: list[mmap.mmap | bytearray] = []
        self._mapped = 0
        self._refresh()

    @property
    def num_rows(self) -> int:
        """Number of rows with an entry in the log, damaged ones included."""
        return self._end

    def find(self, keys: Keys) -> Places:
        """Return the numbers of the rows that are there and undamaged, -1 for the others."""
        self._refresh()
        self._others.clear()
        rows = np.frombuffer(self._maps[0], ROW)
        places = np.full(len(keys), -1, np.int64)
        for start in range(0, len(keys), _AT_ONCE):
            wanted = keys[start : start + _AT_ONCE]
            for likely in self._index.find(np.ascontiguousarray(wanted[:, 0])):
                some = ((likely >= 0) & (likely < len(rows))).nonzero()[0]
                some = some[(rows["key"][likely[some]] == wanted[some]).all(axis=1)]
                some = some[places[start + some] < 0]
                places[start + some] = self._whole(likely[some])
        return places

    def append(self, keys: Keys, photos: NDArray[np.uint64], features: Sequence[Tensor]) -> None:
        """Add rows, without those that another process has added in the meantime."""
        with locked(self._lock):
            before = self._end
            self._read_log()
            self._note_others(before)
            new = np.array([key not in self._others for key in keys[:, 0].tolist()])
            if not new.any():
                return
            rows = np.zeros(int(new.sum()), ROW)
            rows["key"], rows["photo"] = keys[new], photos[new]
            chosen = torch.from_numpy(new)
            parts = [_bytes_of(rows)] + [
                _bytes_of(tensor[chosen].contiguous().view(torch.uint8).numpy())
                for tensor in features
            ]
            block = np.zeros(1, _BLOCK)
            block["start"], block["rows"] = self._end, len(rows)
            block["crc"] = self._checksum(self._end, len(rows), parts)
            block["check"] = _check(block)
            sizes = (ROW.itemsize, *self.layout.sizes)
            for file, part, size in zip((self._keys, *self._files), parts, sizes, strict=True):
                _write(file, self._end * size, part)
            _write(self._log, self._read, _bytes_of(block))
            self._new += block.tobytes()
            self._new_entries += np.array([self._read], np.int64).tobytes()
            self._read += _BLOCK.itemsize
            self._end += len(rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all rows that were there when rows were last looked for."""
        rows, dtype = self._mapped, DTYPES[self.layout.dtype]
        return tuple(
            as_tensor(content, (rows, *shape), dtype)
            for content, shape in zip(self._maps[1:], self.layout.shapes, strict=True)
        )

    def save_index(self) -> None:
        """Note where the rows are, for faster opening."""
        self._refresh()
        self._index.save()

    def keep_only(self, places: Places) -> None:
        """Drop all rows but these; the numbers of the rows change.

        The rows are copied to a new store, whose files then replace those of this one, one after
        the other. If that is interrupted, the checksums tell which rows are damaged. A process that
        has the store open keeps the old files.
        """
        new = self.folder.with_name(f"{self.folder.name}-new")
        for path in own_files(new) if new.is_dir() else []:
            path.unlink()
        copy = DiskStore(new, self.layout, self._description)
        rows, tensors = np.frombuffer(self._maps[0], ROW), self.tensors()
        kept = np.sort(places)
        for start in range(0, len(kept), _COPIED_ROWS):
            some = kept[start : start + _COPIED_ROWS]
            features = [tensor[torch.from_numpy(some)] for tensor in tensors]
            copy.append(rows["key"][some], rows["photo"][some], features)
        copy._closing()
        with locked(self._lock):
            (self.folder / INDEX).unlink(missing_ok=True)
            for name in (BLOCKS, KEYS, *_row_files(self.layout)):
                (new / name).replace(self.folder / name)
        for path in own_files(new):
            path.unlink()
        new.rmdir()
        self._closing()
        self._open()

    def _refresh(self) -> None:
        """Read what was added to the log since it was last read, and map the rows."""
        with locked(self._lock):  # no entry is half written
            self._read_log()
        if self._new:
            blocks, entries = bytes(self._new), bytes(self._new_entries)
            self._new.clear()
            self._new_entries.clear()
            self._blocks = np.concatenate([self._blocks, np.frombuffer(blocks, _BLOCK)])
            self._entries = np.concatenate([self._entries, np.frombuffer(entries, np.int64)])
            verified = np.zeros(len(self._blocks), np.bool_)
            verified[: len(self._verified)] = self._verified
            self._verified = verified
        if self._mapped == self._end and self._maps:
            return
        sizes = (ROW.itemsize, *self.layout.sizes)
        files = (self._keys, *self._files)
        there = min(
            os.fstat(file.fileno()).st_size // size
            for file, size in zip(files, sizes, strict=True)
            if size
        )
        if there < self._end:  # a file has lost its end
            ends = self._blocks["start"] + self._blocks["rows"]
            self._strike((ends > there).nonzero()[0])
        self._mapped = min(there, self._end)
        self._maps = [
            mapped(file, self._mapped * size) for file, size in zip(files, sizes, strict=True)
        ]
        if self._index.covered > self._mapped:
            self._index.forget()
        rows = np.frombuffer(self._maps[0], ROW)
        for start in range(self._index.end, len(rows), 16 * _AT_ONCE):
            prefixes = rows["key"][start : start + 16 * _AT_ONCE, 0]
            self._index.add(np.ascontiguousarray(prefixes))

    def _read_log(self) -> None:
        size = os.fstat(self._log.fileno()).st_size // _BLOCK.itemsize * _BLOCK.itemsize
        if size <= self._read:
            return
        self._log.seek(self._read)
        content = self._log.read(size - self._read)
        blocks = np.frombuffer(content[: len(content) // _BLOCK.itemsize * _BLOCK.itemsize], _BLOCK)
        entries = self._read + np.arange(len(blocks)) * _BLOCK.itemsize
        self._read += blocks.nbytes
        sound = _check(blocks) == blocks["check"]
        self.damaged += int((~sound).sum())
        good = sound & (blocks["rows"] > 0)
        if good.any():
            last = blocks[good]
            self._new += last.tobytes()
            self._new_entries += entries[good].astype(np.int64).tobytes()
            self._end = max(self._end, int((last["start"] + last["rows"]).max()))

    def _note_others(self, start: int) -> None:
        """Remember the keys of the rows from ``start`` on, which another process has added."""
        if start == self._end:
            return
        self._keys.seek(start * ROW.itemsize)
        content = self._keys.read((self._end - start) * ROW.itemsize)
        others = np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], ROW)
        self._others.update(others["key"][:, 0].tolist())

    def _whole(self, places: Places) -> Places:
        """Replace rows of blocks that are damaged, or struck out, by -1."""
        numbers = self._blocks["start"].searchsorted(places.astype(np.uint64), side="right") - 1
        inside = numbers >= 0
        block = self._blocks[numbers[inside]]
        inside[inside] = places[inside] < (block["start"] + block["rows"]).astype(np.int64)
        asked = np.unique(numbers[inside])
        broken = self._broken(asked[~self._verified[asked]])
        if len(broken):
            inside &= ~np.isin(numbers, broken)
            self._strike(broken)
        return np.where(inside, places, -1)

    def _broken(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Verify the checksums of blocks, and return the numbers of those that are damaged."""
        sizes = (ROW.itemsize, *self.layout.sizes)
        views = [memoryview(content) for content in self._maps]
        blocks, sound = self._blocks[numbers], np.zeros(len(numbers), np.bool_)
        columns = (blocks[name].tolist() for name in ("start", "rows", "crc"))
        for at, (start, rows, crc) in enumerate(zip(*columns, strict=True)):
            parts = [
                view[start * size : (start + rows) * size]
                for view, size in zip(views, sizes, strict=True)
            ]
            sound[at] = self._checksum(start, rows, parts) == crc
        self._verified[numbers[sound]] = True
        return numbers[~sound]

    def _checksum(self, start: int, rows: int, parts: Sequence[memoryview]) -> int:
        checksum = zlib.crc32(b"%d %d" % (start, rows), self._seed)
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return checksum

    def _strike(self, numbers: NDArray[np.int64]) -> None:
        """Strike damaged blocks out of the log."""
        self.damaged += len(numbers)
        for number in numbers:
            block = self._blocks[number : number + 1].copy()
            block["rows"] = 0
            block["check"] = _check(block)
            with locked(self._lock):
                _write(self._log, int(self._entries[number]), _bytes_of(block))
        kept = np.ones(len(self._blocks), np.bool_)
        kept[numbers] = False
        self._blocks, self._entries = self._blocks[kept], self._entries[kept]
        self._verified = self._verified[kept]


def _check(blocks: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return the checksum of the entries of blocks; a change of one bit always changes it."""
    columns = (blocks["start"], blocks["rows"], blocks["crc"])
    total = np.full(len(blocks), _FACTORS[0], np.uint64)
    for column, factor in zip(columns, _FACTORS, strict=True):
        total = (total ^ column.astype(np.uint64)) * np.uint64(factor)
        total ^= total >> np.uint64(29)
    return total


def _bytes_of(numbers: NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data


def _write(file: IO[bytes], at: int, content: memoryview) -> None:
    file.seek(at)
    while len(content):  # a nearly full disk accepts a part, then raises
        content = content[file.write(content) :]


def _opened(path: Path) -> IO[bytes]:
    """Open a file for reading and writing; it is created if it does not exist, never through a
    link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)


def _row_files(layout: RowLayout) -> list[str]:
    return [f"{number}.bin" for number in range(len(layout.shapes))]


def _close(files: Sequence[IO[bytes]]) -> None:
    """Close the files of a store that nobody uses any more; its tensors stay valid."""
    for file in files:
        file.close()


def own_files(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to the store."""
    return [
        path
        for path in folder.iterdir()
        if _OWN_NAME.fullmatch(path.name) and (path.is_symlink() or not path.is_dir())
    ]


def remove_links(folder: Path) -> None:
    """Remove symbolic links in place of a store or its files, so that no target is overwritten."""
    links = [folder] if folder.is_symlink() else own_files(folder) if folder.is_dir() else []
    for path in links:
        if path.is_symlink():
            path.unlink()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
