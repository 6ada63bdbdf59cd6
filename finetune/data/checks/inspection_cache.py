"""Inspection cache: one SQLite file in the user's cache folder; imports no torch.

A file is identified by its path and its state (`state_of`), so that a changed file is unknown. If
the cache is missing or broken, all files are inspected again: nothing depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import __version__ as pillow_version

from finetune.core.files import state_of, user_cache
from finetune.data.checks.inspect_file import FileInspection

_TABLE = "looks_5"
"""Table name; its number is increased when the meaning of an inspection changes."""
_COLUMNS = (
    *("reason", "decoded", "format", "mode", "width", "height", "frames"),
    *("sample", "pixels", "phash", "shadows", "highlights", "sharpness"),
)
_WIDTH = len(_COLUMNS) + 3
"""Number of columns of a row: key, day, checksum and inspection."""
_AT_ONCE = 500
_FORGOTTEN_AFTER_DAYS = 365


def inspection_cache_file() -> Path:
    """Return the path of the inspection cache."""
    return user_cache() / "looks.sqlite"


def key_of_file(path: str) -> bytes | None:
    """Return the cache key of a file, or None if its status cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    text = f"{pillow_version} {state_of(status)} "
    full = os.fsencode(os.path.abspath(path))  # noqa: PTH100
    return hashlib.blake2b(text.encode() + full, digest_size=16).digest()


class InspectionCache:
    """Cache of file inspections by key.

    It never raises: an entry that cannot be read is unknown, one that cannot be written is lost.
    """

    def __init__(self, file: Path | None = None) -> None:
        try:
            self._file = file or inspection_cache_file()
            self._database = self._open()
        except OSError:  # no home folder
            self._database = None

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(self, *_: object) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()

    def find(self, keys: Sequence[bytes | None]) -> dict[bytes, FileInspection]:
        """Return the cached inspections of these keys."""
        found: dict[bytes, FileInspection] = {}
        asked = [key for key in keys if key is not None]
        if self._database is None:
            return found
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            columns = f"key, checksum, {','.join(_COLUMNS)}"
            query = f"SELECT {columns} FROM {_TABLE} WHERE key IN ({marks})"  # noqa: S608
            try:
                rows = self._database.execute(query, some).fetchall()
            except sqlite3.Error:
                return found
            # SQLite detects a damaged page only if its structure is invalid.
            whole = (row for row in rows if row[1] == _checksum(row[0], row[2:]))
            found.update((row[0], _look_of(row[2:])) for row in whole)
        return found

    def keep(self, inspections: Iterable[tuple[bytes | None, FileInspection]]) -> None:
        """Store inspections, except those whose result may differ another time."""
        today = int(time.time() // 86400)
        rows = [
            (key, today, _checksum(key, row := _row_of(inspection)), *row)
            for key, inspection in inspections
            if key is not None and inspection.lasting
        ]
        if self._database is None or not rows:
            return
        marks = ",".join("?" * _WIDTH)
        with contextlib.suppress(sqlite3.Error), self._database:
            insert = f"INSERT OR REPLACE INTO {_TABLE} VALUES ({marks})"  # noqa: S608
            self._database.executemany(insert, rows)

    def forget_old(self) -> None:
        """Remove entries older than a year; files that still exist are inspected again."""
        oldest = int(time.time() // 86400) - _FORGOTTEN_AFTER_DAYS
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error), self._database:
                self._database.execute(f"DELETE FROM {_TABLE} WHERE day < ?", (oldest,))  # noqa: S608

    def _open(self) -> sqlite3.Connection | None:
        for _ in range(2):
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, or no such folder
                    return None
                # The cache is damaged and can be rebuilt: delete it.
                with contextlib.suppress(OSError):
                    self._file.unlink()
            except OSError:
                return None
        return None

    def _connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._file, timeout=5.0)
        try:
            # A power failure may lose entries, which only costs time.
            database.execute("PRAGMA synchronous = OFF")
            with database:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {_TABLE} (key BLOB PRIMARY KEY, day INTEGER, "
                    f"checksum INTEGER, {','.join(_COLUMNS)}) WITHOUT ROWID"
                )
        except sqlite3.Error:
            database.close()
            raise
        return database


def _row_of(inspection: FileInspection) -> tuple[object, ...]:
    phash = None if inspection.phash is None else inspection.phash.to_bytes(8, "big")
    values = {**asdict(inspection), "decoded": int(inspection.decoded), "phash": phash}
    return tuple(values[name] for name in _COLUMNS)


def _checksum(key: object, row: tuple[object, ...]) -> int:
    return zlib.crc32(repr((key, row)).encode("utf-8", "backslashreplace"))


def _look_of(row: tuple[object, ...]) -> FileInspection:
    values = dict(zip(_COLUMNS, row, strict=True))
    phash = values.pop("phash")
    known = None if phash is None else int.from_bytes(bytes(phash), "big")  # type: ignore[call-overload]
    return FileInspection(**{**values, "decoded": bool(values["decoded"])}, phash=known)  # type: ignore[arg-type]
