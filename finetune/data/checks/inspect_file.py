"""File inspection: the content of one file, and whether it can be read; imports no torch.

A quick inspection reads the header and checks that the file ends as its format requires. This finds
files that are empty, truncated, too large or not images. If that is inconclusive, and in a full
inspection, the whole image is decoded.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
import struct
import warnings
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetune.data.checks.tiff_kind import kind_of_tiff
from finetune.data.image_ops import over_white, strips, upright
from finetune.data.images import (
    MOST_PIXELS,
    PIL_FORMATS,
    is_machine_fault,
    lasts,
    refusal,
    why_absent,
)
from finetune.data.png_metadata import without_large_metadata
from finetune.data.quiet_decoding import warnings_ignored

_PLAIN_BITS = range(16, 49)
"""Numbers of set bits of a meaningful perceptual hash: near half of 64, except for plain images."""

_KNOWN_BEGINNINGS = (
    (b"%!PS", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<!DOC", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
    (b"PK\3\4", "a ZIP archive"),
    (b"8BPS", "a Photoshop file"),
    (b"P7\n", "a PAM file"),
    (b"PF\n", "a PFM file"),
)
_MAGIC = (
    *((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WEBP"), (b"GIF8", "GIF")),
    *((b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF")),
)
"""Magic numbers of image files, with Pillow's format names."""
_SAMPLED = 4096
"""Number of bytes at each end of a file that its sample is of."""
_ROOM = 2**26
_ROOM_PER_PIXEL = 16
"""Bytes of free memory per pixel required to attribute a decoder error to the file.

`_ROOM` bytes are required in addition.
"""
_PRIVATE = (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,) if hasattr(mmap, "MAP_PRIVATE") else ()
"""Flags that make `mmap.mmap` ask for private memory; Windows has no other kind."""
_SHARPNESS_AT = 256
"""Shorter side, in pixels, at which sharpness is measured."""
_ISO_MEDIA = ((b"heic", "HEIC"), (b"heix", "HEIC"), (b"mif1", "HEIF"), (b"avif", "AVIF"))


@dataclass(frozen=True)
class FileInspection:
    """Result of a file inspection.

    Attributes:
        reason: Reason why the file cannot be read; None if no problem was found.
        decoded: Whether the inspection was full: the whole image was decoded if possible.
        lasting: Whether the same bytes would always give the same result.
        machine_fault: Whether memory, the system or the installation failed, so that nothing is
            known about the file.
        sample: Hash of the file's size and its first and last bytes, equal for copies; empty if the
            file cannot be read.
        pixels: Hash of mode, size and pixels; empty without a full inspection.
        phash: Perceptual hash of 64 bits; None without a full inspection, or for a plain image.
        shadows: Grey level, from 0 to 255, below which 5 % of the pixels are.
        highlights: Grey level below which 95 % of the pixels are.
        sharpness: Strength of the sharpest edges relative to the contrast; 0 without edges.
    """

    reason: str | None = None
    decoded: bool = False
    lasting: bool = True
    machine_fault: bool = False
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    sample: bytes = b""
    pixels: bytes = b""
    phash: int | None = None
    shadows: int = 0
    highlights: int = 0
    sharpness: float = 0.0


class _BadFileError(Exception):
    """Error for a file that cannot be read; the message is the reason."""

    def __init__(self, reason: str, *, lasting: bool = True, machine_fault: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting
        self.machine_fault = machine_fault


def inspect_file(path: str, *, full: bool) -> FileInspection:
    """Inspect a file.

    Args:
        full: Whether to decode and hash the whole image, even if a quick inspection suffices.
    """
    with warnings_ignored():
        try:
            with _opened(path) as file, _identified(file) as image:
                return _look(file, image, full=full)
        except _BadFileError as error:
            return FileInspection(
                reason=str(error),
                decoded=full,
                lasting=error.lasting,
                machine_fault=error.machine_fault,
            )


def without_warnings() -> None:
    """Disable all warnings in a process that only inspects files; Pillow warns about bad files."""
    warnings.simplefilter("ignore")


def _look(file: BinaryIO, image: Image.Image, *, full: bool) -> FileInspection:
    inspection = FileInspection(
        format=image.format or "",
        mode=image.mode,
        width=image.width,
        height=image.height,
        sample=_sample(file),
    )
    refused = refusal(image.mode, image.width, image.height)
    if refused is not None:
        raise _BadFileError(refused)
    if not full and _ends_whole(file, image):
        return inspection
    try:
        image.load()
        if not full:
            return inspection
        photo = upright(image)
        grey = _grey(photo)
        return replace(
            inspection,
            decoded=True,
            width=photo.width,
            height=photo.height,
            pixels=_hash_pixels(photo),
            phash=_perceptual_hash(grey),
            frames=_frames(image),
            **_tones(grey),
        )
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise _failure(error, _words(error), image.width * image.height) from error


def _failure(error: Exception, words: str, pixels: int) -> _BadFileError:
    """Return an error that attributes a decoder's exception to the file or to the machine."""
    if isinstance(error, MemoryError):
        return _BadFileError("needs more memory than there is", lasting=False, machine_fault=True)
    if not lasts(error):
        return _BadFileError(words, lasting=False, machine_fault=is_machine_fault(error))
    if _has_room(pixels):
        return _BadFileError(words)
    return _BadFileError(
        f"{words}, with too little free memory to tell whether it is sound",
        lasting=False,
        machine_fault=True,
    )


def _has_room(pixels: int) -> bool:
    """Return whether there is enough memory to decode an image of this size.

    Without it, several decoders report an intact file as broken. The memory asked for is private,
    as a decoder's is: Linux does not count shared memory towards the limit RLIMIT_DATA.
    """
    try:
        mmap.mmap(-1, _ROOM + pixels * _ROOM_PER_PIXEL, *_PRIVATE).close()
    except (OSError, MemoryError):
        return False
    return True


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":  # a photo with a preview as its second frame
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # broken after the first frame, the only one that is used
        return 1


def _opened(path: str) -> BinaryIO:
    """Open a regular file; opening a pipe could wait for a writer."""
    try:
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise _BadFileError("is not a regular file", lasting=False)
        if not status.st_size:
            raise _BadFileError("is empty: 0 bytes")
        return open(path, "rb")  # noqa: PTH123
    except FileNotFoundError:
        link = os.path.islink(path)  # noqa: PTH114
        what = "is a link to a file that is not there" if link else why_absent(path)
        raise _BadFileError(what, lasting=False) from None
    except PermissionError:
        raise _BadFileError("permission denied", lasting=False) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _BadFileError("is a link that leads in a circle", lasting=False) from None
        raise _failure(error, _words(error), 0) from error


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(without_large_metadata(file), formats=PIL_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(32)
        name = next((name for begin, name in _MAGIC if start.startswith(begin)), None)
        if name is None or (name == "WEBP" and start[8:12] != b"WEBP"):
            raise _BadFileError(_what_else(start)) from None
        raise _refused_by_decoder(file, name, error) from error
    except Image.DecompressionBombError as error:
        pixels = next(
            (int(word) for word in str(error).split(" (")[-1].split() if word.isdigit()), 0
        )
        raise _BadFileError(refusal("RGB", pixels, 1) or str(error)) from None
    except Exception as error:
        raise _failure(error, _not_opened("an image", error), MOST_PIXELS) from error


def _refused_by_decoder(file: BinaryIO, name: str, error: Exception) -> _BadFileError:
    """Return why the decoder of this format rejects the file; ``Image.open`` does not say."""
    file.seek(0)
    start = file.read(16)
    try:
        decode, accept = Image.OPEN[name]
        if accept is not None and isinstance(accept(start), str):
            raise ImportError(f"this installation of Pillow cannot read {name}")
        content = without_large_metadata(file)
        content.seek(0)
        decode(content, "")
    except Exception as refused:
        error = refused
    words = kind_of_tiff(file) if name == "TIFF" else ""
    return _failure(error, words or _not_opened(name, error), MOST_PIXELS)


def _not_opened(name: str, error: Exception) -> str:
    words = _words(error)
    cut = "truncated" in words.lower() or isinstance(error, LookupError | EOFError | struct.error)
    why = "its header is broken" if cut else "cannot be opened"
    return f"begins as {name}, but {why}: {words}"


def _what_else(start: bytes) -> str:
    """Describe a file that is not an image in a supported format."""
    kinds = "JPEG, PNG, WebP, BMP, TIFF, PPM or GIF"
    if start[4:8] == b"ftyp":
        known = next((name for brand, name in _ISO_MEDIA if start[8:12] == brand), "a video")
        return f"is {known}, not {kinds}; convert it"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image itself; run `git lfs pull`"
    known = next((name for begin, name in _KNOWN_BEGINNINGS if start.startswith(begin)), "")
    if known:
        return f"is {known}, not {kinds}"
    if set(start) <= {*range(32, 127), 9, 10, 13}:
        return f"is text, not an image: it starts with {start[:20].decode()!r}"
    return f"is not an image ({kinds})"


def _ends_whole(file: BinaryIO, image: Image.Image) -> bool:
    """Return whether the file is certainly complete; if False, only decoding can tell."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    try:
        if image.format in ("JPEG", "MPO"):
            return _tail(file, size, 2) == b"\xff\xd9"
        if image.format == "GIF":
            return _tail(file, size, 1) == b";"
        if image.format == "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= size
        if image.format == "BMP":
            file.seek(2)
            stated = int.from_bytes(file.read(4), "little")
            return 0 < stated <= size
        return image.format == "PNG" and _chunks_are_whole(file, size)
    finally:
        file.seek(position)


def _sample(file: BinaryIO) -> bytes:
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(b"%d " % size + _tail(file, size, _SAMPLED))
    file.seek(0)
    digest.update(file.read(_SAMPLED))
    file.seek(position)
    return digest.digest()[:16]


def _tail(file: BinaryIO, size: int, count: int) -> bytes:
    file.seek(max(size - count, 0))
    return file.read(count)


def _chunks_are_whole(file: BinaryIO, size: int) -> bool:
    """Return whether the chunks of a PNG are complete up to IEND; their contents are not read."""
    at = 8
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        at += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return at <= size
    return False


def _hash_pixels(image: Image.Image) -> bytes:
    mode = "RGBA" if image.mode == "P" else image.mode
    digest = hashlib.sha256(f"{mode} {image.size}".encode())
    for _, strip in strips(image):
        digest.update((strip.convert(mode) if strip.mode != mode else strip).tobytes())
    return digest.digest()[:16]


def _perceptual_hash(grey: Image.Image) -> int | None:
    """Return the pHash (Zauner 2010) of a greyscale image, reduced, or None for a plain image."""
    import imagehash  # imported here because a quick inspection does not need it

    bits = imagehash.phash(_reduced(grey, 64)).hash
    if int(bits.sum()) not in _PLAIN_BITS:
        return None
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def _reduced(grey: Image.Image, side: int) -> Image.Image:
    """Return the image with a shorter side from ``side`` to twice that, or smaller as it is."""
    factor = min(grey.size) // side
    return grey.reduce(factor) if factor > 1 else grey


def _tones(grey: Image.Image) -> dict[str, Any]:
    """Return ``shadows``, ``highlights`` and ``sharpness`` of a greyscale image.

    Edges are measured at one size, as large photos are rarely sharp to the pixel. The sharpest
    hundredth counts: a photo with a blurred background is sharp somewhere.
    """
    levels = np.asarray(_reduced(grey, _SHARPNESS_AT)).astype(np.int16)
    shares = np.bincount(levels.ravel(), minlength=256).cumsum() / levels.size
    darkest, shadows, highlights, brightest = np.searchsorted(shares, (0.01, 0.05, 0.95, 0.99))
    edges = np.abs(
        4 * levels[1:-1, 1:-1]
        - (levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:])
    )
    strongest = 0.0
    if edges.size:
        counts = np.bincount(edges.ravel()).cumsum() / edges.size
        strongest = float(np.searchsorted(counts, 0.99))
    return {
        "shadows": int(shadows),
        "highlights": int(highlights),
        "sharpness": strongest / float(brightest - darkest + 1),
    }


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.array(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        values -= low  # in-place: four copies of a large image could fill the memory
        values *= 255 / max(high - low, 1e-9)
        return Image.fromarray(values.astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "P"):
        return over_white(image).convert("L")
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow does not convert LAB to grey directly
    return image.convert("L")


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
