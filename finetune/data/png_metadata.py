"""PNG files with more metadata than Pillow unpacks; imports no torch.

Pillow refuses a picture for a text or colour profile of more than 1 MB, wherever in the file it
is. The pixels do not depend on it, so that such chunks are left out of what Pillow is given.
"""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD, _CHECK = 8, 4
"""Bytes of a chunk before and after its content."""
_STEP = 2**16


def without_large_metadata(file: BinaryIO) -> BinaryIO:
    """The file itself, or a copy in memory without the chunks of metadata that Pillow refuses.

    Raises:
        OSError: all metadata together would take more memory than any photo needs for it.
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
    """Size of a chunk's content once it is unpacked, as far as it is not more than ``most``."""
    _, _, rest = content.partition(b"\0")  # its name
    if kind == b"iTXt":
        packed, rest = rest[:1], rest[2:]
        if packed != b"\1":
            return len(content)
        _, _, rest = rest.partition(b"\0")  # the language
        _, _, rest = rest.partition(b"\0")  # the name in that language
    else:
        rest = rest[1:]  # the method
    unpacker = zlib.decompressobj()
    size = 0
    try:
        while rest and not unpacker.eof and size <= most:
            size += len(unpacker.decompress(rest, _STEP))
            rest = unpacker.unconsumed_tail
    except zlib.error:  # Pillow takes it as empty
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
