"""Index of a feature store: finds rows by key without reading all keys.

The file has the first eight bytes of the keys in ascending order, then the number of each key's
row. It is a copy of what the store's other files say, and nobody relies on it: a row that it names
counts only if the store has the whole key there. It can therefore be missing, old or damaged.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from finetune.core.errors import OutputError
from finetune.core.files import write_atomically

FILE = "index.bin"
_MARK = 0x3158444E49544546
_HEADER = np.dtype([("mark", "<u8"), ("covered", "<u8"), ("count", "<u8")])
_NUMBER = np.dtype("<u8")
_FEWEST_ROWS = 2**16
_LARGEST_SHARE = 4
"""The index is brought up to date once a store has this many rows that are not in it, and one in
this many of all; until then they are sorted in memory."""
_AT_ONCE = 2**19


class RowIndex:
    """Rows of a store by the first eight bytes of their keys.

    Attributes:
        covered: Number of the store's first rows that the file covers.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._sorted: NDArray[np.uint64] = np.empty(0, _NUMBER)
        self._places: NDArray[np.uint64] = np.empty(0, _NUMBER)
        self._late: NDArray[np.uint64] = np.empty(0, _NUMBER)
        self._late_places: NDArray[np.int64] = np.empty(0, np.int64)
        self.covered = 0
        self.end = 0
        """Number of the store's first rows that are in the file or sorted in memory."""
        with suppress(OSError, ValueError):
            self._map()

    def _map(self) -> None:
        header = np.fromfile(self._path, _HEADER, 1)
        if not len(header) or header["mark"][0] != _MARK:
            return
        count = int(header["count"][0])
        if self._path.stat().st_size != _HEADER.itemsize + 2 * count * _NUMBER.itemsize:
            return
        if not count:
            return
        numbers = np.asarray(np.memmap(self._path, _NUMBER, "r", _HEADER.itemsize))
        self._sorted, self._places = numbers[:count], numbers[count:]
        self.covered = self.end = int(header["covered"][0])

    def forget(self) -> None:
        """Use nothing of the file any more: it covers rows that the store does not have."""
        empty = np.empty(0, _NUMBER)
        self._sorted = self._places = self._late = empty
        self._late_places = np.empty(0, np.int64)
        self.covered = self.end = 0

    def add(self, prefixes: NDArray[np.uint64]) -> None:
        """Add the rows from ``end`` on, by the first eight bytes of their keys."""
        places = np.arange(self.end, self.end + len(prefixes))
        self._late_places = np.concatenate([self._late_places, places])
        late = np.concatenate([self._late, prefixes])
        order = late.argsort(kind="stable")  # of equal ones the latest row is the last
        self._late, self._late_places = late[order], self._late_places[order]
        self.end += len(prefixes)

    def find(self, prefixes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the likely row of each key in the late rows and in the file, or -1."""
        order = prefixes.argsort()  # neighbouring keys are found on the same pages
        wanted = prefixes[order]
        late = np.full(len(prefixes), -1, np.int64)
        filed = late.copy()
        late[order] = _looked_up(self._late, self._late_places, wanted)
        filed[order] = _looked_up(self._sorted, self._places, wanted)
        return late, filed

    def save(self) -> None:
        """Write the index anew if many rows are not in its file; it is only a help if it fails."""
        added = self.end - self.covered
        if added < _FEWEST_ROWS or added * _LARGEST_SHARE < self.end:
            return
        with suppress(OSError, OutputError):
            write_atomically(self._path, self._write)
            self._late = np.empty(0, _NUMBER)
            self._late_places = np.empty(0, np.int64)
            self._map()

    def _write(self, file: IO[bytes]) -> None:
        """Write both parts merged, a piece at a time, so that memory does not grow with them."""
        header = np.zeros(1, _HEADER)
        count = len(self._sorted) + len(self._late)
        header["mark"], header["covered"], header["count"] = _MARK, self.end, count
        file.write(header.tobytes())
        at = self._sorted.searchsorted(self._late, side="right")
        places = self._late_places.astype(_NUMBER)
        for old, new in ((self._sorted, self._late), (self._places, places)):
            for start in range(0, len(old) + 1, _AT_ONCE):
                stop = min(start + _AT_ONCE, len(old))
                last = stop == len(old)
                first, end = at.searchsorted((start, stop), side="left")
                end = len(at) if last else end
                file.write(
                    np.insert(old[start:stop], at[first:end] - start, new[first:end]).tobytes()
                )
                if last:
                    break


def _looked_up(
    known: NDArray[np.uint64],
    places: NDArray[np.uint64] | NDArray[np.int64],
    wanted: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Return the place of the last of the known numbers that equals each wanted one, or -1."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    at = known.searchsorted(wanted, side="right").astype(np.int64) - 1
    found = (at >= 0) & (known[at] == wanted)
    return np.where(found, places[at].astype(np.int64), -1)
