"""Valid and broken files as found in photo folders, for tests of file inspection."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

# Where these are copied from: random, so that no two pictures are alike.


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Coloured blotches, other ones for every seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    """Save a picture, of noise where none is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(random.Random(path.name).randrange(2**32))).save(path, **options)  # type: ignore[arg-type]
    return path


def damage(path: Path) -> Path:
    """A PNG whose header and end are as they should be, with garbage between."""
    save(path, Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)))
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    return path


def cut(path: Path, keep: float = 0.6) -> Path:
    """A picture whose end is missing."""
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def bomb(path: Path, side: int = 30_000) -> Path:
    """A small PNG of very many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + side // 8) * 64)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    """A file with these bytes."""

    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def link(to: str) -> Callable[[Path], Path]:
    """A link to somewhere."""

    def make(path: Path) -> Path:
        path.symlink_to(to)
        return path

    return make


def fifo(path: Path) -> Path:
    """A pipe that nobody writes into: opening it would wait for ever."""
    os.mkfifo(path)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut.jpg": (cut, "truncated"),
    "cut.png": (cut, "truncated"),
    "cut.webp": (cut, ""),
    "cut.gif": (cut, "truncated"),
    "cut.bmp": (cut, "truncated"),
    "cut.tif": (cut, ""),
    "cut.ppm": (cut, "truncated"),
    "empty.jpg": (written(b""), "is empty: 0 bytes"),
    "text.jpg": (written(b"hello\n"), "is text, not an image: it starts with 'hello"),
    "page.jpg": (written(b"<!DOCTYPE html>"), "is a web page"),
    "ghost.jpg": (written(b"%!PS-Adobe-3.0\n"), "is PostScript"),
    "phone.jpg": (written(b"\0\0\0\x18ftypheic\0\0\0\0"), "is HEIC"),
    "lfs.jpg": (written(b"version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`"),
    "bytes.jpg": (written(bytes(range(128, 200))), "is not an image"),
    "head.jpg": (written(b"\xff\xd8\xff\xe0\0\x10"), "its header is broken"),
    "bomb.png": (bomb, "has 900,000,000 pixels, more than the"),
    "loop.jpg": (link("loop.jpg"), "is a link that leads in a circle"),
    "nowhere.jpg": (link("nothing.jpg"), "is a link to a file that is not there"),
    "folder.jpg": (link("."), "is not a regular file"),
    "pipe.jpg": (fifo, "is not a regular file"),
}

ODD_NAMES = ("a b.jpg", 'quote".jpg', "quote'.jpg", "new\nline.jpg", "-rf.jpg", "ünï.JPG")
