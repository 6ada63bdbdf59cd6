"""Removal of metadata that is too large for Pillow from PNG files; imports no torch.

Pillow rejects an image with a text or colour profile of more than 1 MB, wherever in the file it
is. The pixels do not depend on it, so such chunks are removed before Pillow reads the file.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD, _CHECK = 8, 4
"""Number of bytes of a chunk before and after its content."""
_STEP = 2**16


def without_large_metadata(file: BinaryIO) -> BinaryIO:
    """Return the file, or a copy in memory without the metadata chunks that Pillow rejects.

    Raises:
        OSError: The metadata together exceeds Pillow's memory limit.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return file
    large: list[tuple[int, int]] = []
    total = 0
    at = len(_SIGNATURE)
    while len(head := _read(file, at, _HEAD)) == _HEAD and head[4:] != b"IEND":
        length = int.from_bytes(head[:4], "big")
        end = at + _HEAD + length + _CHECK
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            unpacked = length
            if head[4:] != b"tEXt":
                unpacked = _unpacked_size(head[4:], file.read(length), MAX_TEXT_MEMORY - total)
            total += unpacked
            if head[4:] != b"tEXt" and unpacked > MAX_TEXT_CHUNK:
                large.append((at, end))
        if total > MAX_TEXT_MEMORY:
            most = MAX_TEXT_MEMORY // 2**20
            raise OSError(f"its metadata takes more than {most} MiB; save it without metadata")
        at = end
    return _without(file, large) if large else file


def _unpacked_size(kind: bytes, content: bytes, most: int) -> int:
    """Return the decompressed size of a chunk's content, measured up to about ``most``."""
    _, _, rest = content.partition(b"\0")  # keyword
    if kind == b"iTXt":
        packed, rest = rest[:1], rest[2:]
        if packed != b"\1":
            return len(content)
        _, _, rest = rest.partition(b"\0")  # language tag
        _, _, rest = rest.partition(b"\0")  # translated keyword
    else:
        rest = rest[1:]  # compression method
    unpacker = zlib.decompressobj()
    size = 0
    try:
        while rest and not unpacker.eof and size <= most:
            size += len(unpacker.decompress(rest, _STEP))
            rest = unpacker.unconsumed_tail
    except zlib.error:  # Pillow treats it as empty
        pass
    return max(size, len(content))


def _without(file: BinaryIO, spans: list[tuple[int, int]]) -> BinaryIO:
    kept = io.BytesIO()
    at = 0
    for start, end in spans:
        kept.write(_read(file, at, start - at))
        at = end
    kept.write(_read(file, at, -1))
    kept.seek(0)
    return kept


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
