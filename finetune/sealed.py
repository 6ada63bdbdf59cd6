"""Files that hold their own SHA-256: ``torch.load`` reads flipped bits without a word.

The hash is the comment that ends the zip archive that ``torch.save`` writes. Readers of archives
pass over a comment, so that whatever reads the file without its seal reads it with it.
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
"""The last field of an archive: so many bytes of comment follow."""
_NO_COMMENT = struct.pack("<H", 0)
_SIZE = len(_LENGTH) + _COMMENT


def write_sealed(file: IO[bytes], write: Callable[[Any], object]) -> None:
    """Let ``write`` write a zip archive into a file, and seal it."""
    hashing = _Hashing(file)
    write(hashing)
    assert hashing.held == _NO_COMMENT
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_seal(hashing.digest.hexdigest()))


def is_whole(file: IO[bytes]) -> bool | None:
    """Whether a file is what was sealed; None where it has no seal."""
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
    """Ask the system to read a synced file from the disk next time, not from its memory."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seal(sha256: str) -> bytes:
    return _LENGTH + _MARK + sha256.encode("ascii")


class _Hashing:
    """Passes bytes on and hashes them all but the last two, which the seal replaces."""

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
