"""Files that contain their own SHA-256, since ``torch.load`` does not detect flipped bits.

The hash is stored in the comment at the end of the zip archive that ``torch.save`` writes. Zip
readers ignore the comment, so that the file can still be read by all of them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

_MARK = b"finetune sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.pack("<H", _COMMENT)
"""Last field of a zip archive: the length of the comment, in bytes."""
_NO_COMMENT = struct.pack("<H", 0)
_SIZE = len(_LENGTH) + _COMMENT


def write_with_checksum(file: IO[bytes], write: Callable[[Any], object]) -> None:
    """Write a zip archive to a file with ``write``, and append the checksum."""
    hashing = _Hashing(file)
    write(hashing)
    assert hashing.held == _NO_COMMENT
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_seal(hashing.digest.hexdigest()))


def has_valid_checksum(file: IO[bytes]) -> bool | None:
    """Whether the checksum of a file is correct; None if it has none."""
    size = file.seek(0, os.SEEK_END)
    if size < _SIZE:
        return None
    file.seek(-_SIZE, os.SEEK_END)
    found = file.read()
    if not found.startswith(_LENGTH + _MARK):
        return None
    file.seek(0)
    digest = hashlib.sha256()
    left = size - _SIZE
    while left and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return found == _seal(digest.hexdigest())


def forget_pages(file: IO[bytes]) -> None:
    """Drop a synced file from the page cache, so that the next read comes from disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seal(sha256: str) -> bytes:
    return _LENGTH + _MARK + sha256.encode("ascii")


class _Hashing:
    """File wrapper that hashes all bytes except the last two, which the checksum replaces."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.held = b""
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write(data)
        keep = len(_NO_COMMENT)
        if len(data) < keep:
            rest = self.held + bytes(data)
        else:
            self.digest.update(self.held)
            rest = data
        self.digest.update(rest[:-keep])
        self.held = bytes(rest[-keep:])
        return len(data)

    def flush(self) -> None:
        self._file.flush()
