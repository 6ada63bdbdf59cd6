"""White level of images with more than 8 bits per channel; imports no torch.

X-ray detectors, microscopes and cameras store 10, 12 or 14 bits in 16-bit files. Scaled from the
full range of the file, such images are nearly black. One white level applies to a whole set of
images: stretching each image to its own range would remove differences in brightness that may
distinguish classes.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.config.base import AUTO
from finetune.config.data import FULL_RANGE, WHITE_LEVELS
from finetune.core.reporter import Reporter
from finetune.core.text import first_few
from finetune.data.image_ops import strips
from finetune.data.images import PIL_FORMATS, refusal, shown
from finetune.data.png_metadata import without_large_metadata
from finetune.data.quiet_decoding import warnings_ignored

GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow modes with more than 8 bits; Pillow reads 16-bit colour as 8 bits, the upper byte."""

_COLOUR_CHANNELS = {"RGB": 3, "RGBX": 3, "RGBA": 3, "LA": 1}
"""Number of channels without alpha, for each Pillow mode that 16-bit colour is decoded to."""
_DEEP_FORMATS = (None, "PNG", "TIFF", "PPM")
"""Pillow formats that can store 16-bit colour; None is that of a copy."""
_DARK = (FULL_RANGE + 1) // 8
"""Level below which images are nearly black: an eighth of the range."""
_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".pgm", ".ppm"})
"""Suffixes of formats that can store more than 8 bits; other files are not sampled."""
_MOST_OPENED = 256
_MOST_DECODED = 64
_MOST_COMPARED = 16
_THREADS = 4
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Opposite of each byte order of 16-bit pixels."""
_STATED_FULL = (FULL_RANGE,)
_STATED = "finetune_states_range"
"""Key in a Pillow image's ``info`` of `_states_its_range`, which is lost in decoding."""


@dataclass(frozen=True)
class Extent:
    """Least and greatest level of an image with more than 8 bits per channel."""

    path: str
    least: int
    greatest: int


def white_of(image: Image.Image, levels: int | None) -> int:
    """Return the white level in Pillow's output for an image that is not yet decoded.

    A PGM file states its maximum level, and Pillow scales that to 16 bits.
    """
    return FULL_RANGE if levels is None or _states_its_range(image) else levels


def load_with_white(image: Image.Image, levels: int | None) -> int:
    """Decode an image that a caller opened; return the white level in Pillow's output.

    The result is kept in the image's ``info``, since the same image may be given again.

    Raises:
        OSError: The image cannot be decoded, or its white level is unknown.
    """
    narrow = levels not in (None, FULL_RANGE)
    if narrow and stored_colour(image):
        raise OSError("has 16-bit color, of which Pillow keeps 8 bits; give its path")
    if _tiles(image):
        image.info[_STATED] = _states_its_range(image)
    elif narrow and _STATED not in image.info:
        _refuse_lost_levels(image, levels or FULL_RANGE)
    image.load()
    return FULL_RANGE if levels is None or image.info.get(_STATED) else levels


def _refuse_lost_levels(image: Image.Image, levels: int) -> None:
    """Reject an image that the caller has decoded and that may have lost its levels by that.

    Raises:
        OSError: The image is a PGM, or a nearly black image in colour.
    """
    if image.format == "PPM" and image.mode in GREY:
        raise OSError("is a PGM that is decoded already, so that its range is lost; give its path")
    channels = _COLOUR_CHANNELS.get(image.mode)
    if channels and image.format in _DEEP_FORMATS:
        greatest = int(np.asarray(image)[..., :channels].max(initial=0))
        if greatest <= levels // 256:
            raise OSError(
                f"has no level above {greatest} and is decoded already: it may have had 16-bit "
                "color, of which Pillow keeps 8 bits; give its path, or its pixels as an array"
            )


def in_8_bits(values: NDArray[np.int32], white: int) -> NDArray[np.uint8]:
    """Scale levels from 0..``white`` to 0..255."""
    return (values.clip(0, white) * 255 // white).astype(np.uint8)


def stored_colour(image: Image.Image) -> str:
    """Return how the pixels of a 16-bit colour image are stored, or "" for any other image.

    Also "" for an image that Pillow has decoded, which then has 8 bits.
    """
    for tile in _tiles(image):
        if image.format == "PPM":
            return tile.codec_name if image.mode == "RGB" and tile.args[1:] == _STATED_FULL else ""
        stored = tile.args if isinstance(tile.args, str) else tile.args and tile.args[0]
        if image.mode not in GREY and isinstance(stored, str) and ";16" in stored:
            return stored
    return ""


def colour_strips(
    image: Image.Image, content: bytes, white: int
) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of a 16-bit colour image in 8 bits, from top to bottom, each with its first row.

    Raises:
        OSError: The image cannot be decoded, or Pillow reads only 8 bits of this storage format.
    """
    for top, values, strip in _colour_values(image, content):
        scaled = Image.fromarray(in_8_bits(values, white))
        if strip.mode == "RGBA":
            scaled.putalpha(strip.getchannel("A"))
        yield top, scaled


def settled_levels(
    given: Any, paths: Sequence[str | os.PathLike[str]], reporter: Reporter
) -> int | None:
    """Resolve the white level of a set of images; warn if it makes them too dark or too light.

    Args:
        given: Value of ``data.levels`` in the config.

    Returns:
        The level, or None if ``given`` is auto and no sampled image has more than 8 bits per
        channel.
    """
    found = extents(paths)
    levels = given if given != AUTO else auto_levels(found) if found else None
    if not found and levels == FULL_RANGE:
        levels = None  # the same: a resolved config restores the value that auto had
    for what, todo in doubts(given, levels or FULL_RANGE, found):
        reporter.warn(f"{what}. {todo}")
    return levels


def warn_of_levels(
    levels: int | None, paths: Sequence[str | os.PathLike[str]], reporter: Reporter
) -> None:
    """Warn if images are much darker or lighter than those a checkpoint was trained on."""
    levels = levels or FULL_RANGE
    for what, todo in doubts(levels, levels, extents(paths, most=_MOST_COMPARED)):
        reporter.warn(f"{what}. {todo}")


def auto_levels(found: Sequence[Extent]) -> int:
    """Resolve ``data.levels: auto`` for the sampled images.

    The result is the full 16-bit range, unless all levels are below an eighth of it; then it is the
    smallest of the 8, 10, 12 and 13-bit ranges that contains them.
    """
    greatest = max(extent.greatest for extent in found)
    narrow = (white for white in (255, 1023, 4095, _DARK - 1) if greatest <= white)
    return next(narrow, FULL_RANGE)


def doubts(given: Any, levels: int, found: Sequence[Extent]) -> Iterator[tuple[str, str]]:
    """Yield problems with the levels of sampled images, each with its remedy.

    Args:
        given: Value of ``data.levels`` in the config.
        levels: Resolved white level.
    """
    if not found:
        return
    greatest = max(extent.greatest for extent in found)
    eighth = (levels + 1) // 8
    fitting = next((white for white in WHITE_LEVELS if greatest <= white), None)
    dark = [extent.path for extent in found if extent.greatest < eighth]
    if given == AUTO and levels != FULL_RANGE:
        yield (
            f"{_sampled(found)} have no level above {greatest:,}, less than an eighth of the "
            f"{FULL_RANGE:,} that 16 bits hold: data.levels auto is {levels}, the level that "
            "becomes white",
            f"If that is the range of the whole set, set data.levels: {levels}; with "
            f"{FULL_RANGE} the images stay dark.",
        )
    elif len(dark) == len(found):
        yield (
            f"{_sampled(found)} have no level above {greatest:,}, less than an eighth of "
            f"data.levels {levels}: the network sees them nearly black",
            f"data.levels: {fitting} makes level {fitting:,} white.",
        )
    elif 2 * len(dark) >= len(found):
        yield (
            f"{_sampled(found)}: {len(dark):,} have no level above {eighth - 1:,}, an eighth of "
            f"data.levels {levels}, and are nearly black to the network; others reach "
            f"{greatest:,} ({first_few(map(shown, dark))})",
            "If all are of one kind, set data.levels to the level that is white in most of them, "
            "such as 4095 for 12 bits; otherwise save all of them over the same range.",
        )
    light = [extent.path for extent in found if extent.greatest > levels]
    if light:
        yield (
            f"{_sampled(found)}: {len(light):,} have levels above {levels:,}, up to {greatest:,}, "
            f"which all become white ({first_few(map(shown, light))})",
            f"data.levels: {fitting} keeps them apart in training."
            if fitting
            else f"Save them with levels from 0 to {FULL_RANGE:,}.",
        )
    negative = [extent.path for extent in found if extent.least < 0]
    if negative:
        yield (
            f"{_sampled(found)}: {len(negative):,} have negative levels, which all become black "
            f"({first_few(map(shown, negative))})",
            "Add one constant to every image of the set, so that the least level is 0.",
        )


def _sampled(found: Sequence[Extent]) -> str:
    return f"{len(found):,} sampled image{'' if len(found) == 1 else 's'} of more than 8 bits"


def extents(
    paths: Sequence[str | os.PathLike[str]], *, most: int = _MOST_DECODED
) -> tuple[Extent, ...]:
    """Return the extents of a sample of images with more than 8 bits per channel.

    Args:
        paths: Images to sample from, at equal distances.
        most: Maximum number of decoded images.
    """
    named = [os.fspath(path) for path in paths]
    named = [path for path in named if os.path.splitext(path)[1].lower() in _SUFFIXES]  # noqa: PTH122
    deep = [path for path in _spread(named, _MOST_OPENED) if _is_deep(path)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_extent_of, _spread(deep, most))
        return tuple(extent for extent in found if extent is not None)


def _spread(items: Sequence[str], most: int) -> list[str]:
    number = min(most, len(items))
    return [items[at * len(items) // number] for at in range(number)]


def _is_deep(path: str) -> bool:
    try:
        with warnings_ignored(), open(path, "rb") as file:  # noqa: PTH123
            image = Image.open(without_large_metadata(file), formats=PIL_FORMATS)
            return _has_deep_channels(image)
    except Exception:  # reported when the file is decoded
        return False


def _has_deep_channels(image: Image.Image) -> bool:
    deep = image.mode in GREY or bool(stored_colour(image))
    allowed = refusal(image.mode, image.width, image.height) is None
    return deep and allowed and not _states_its_range(image)


def _extent_of(path: str) -> Extent | None:
    try:
        content = Path(path).read_bytes()
        with warnings_ignored():
            image = _opened(content)
            if stored_colour(image):
                parts = [values for _, values, _ in _colour_values(image, content)]
            else:
                image.load()
                parts = [np.asarray(strip) for _, strip in strips(image)]
    except Exception:  # reported when the file is decoded
        return None
    return Extent(path, min(int(it.min()) for it in parts), max(int(it.max()) for it in parts))


def _opened(content: bytes) -> Image.Image:
    return Image.open(without_large_metadata(io.BytesIO(content)), formats=PIL_FORMATS)


def _colour_values(
    image: Image.Image, content: bytes
) -> Iterator[tuple[int, NDArray[np.int32], Image.Image]]:
    """Yield strips: the first row, levels ``(h, w, 3)``, and the strip as Pillow decodes it.

    Pillow keeps the upper byte of each channel. Decoding the file again in the opposite byte order
    gives the lower byte.
    """
    stored, lower = stored_colour(image), _opened(content)
    if stored == "ppm":
        shape, offset = (image.height, image.width, 3), _tiles(image)[0].offset
        values = np.frombuffer(content, ">u2", image.height * image.width * 3, offset)
        yield 0, values.astype(np.int32).reshape(shape), image
        return
    bands, _, order = stored.partition(";16")
    if stored == "LA;16B":
        other = "RGBA"  # four bytes per pixel, read as four channels
    elif bands in ("RGB", "RGBX", "RGBA") and order in _OTHER_ORDER:
        other = f"{bands};16{_OTHER_ORDER[order]}"
    else:
        raise OSError(f"has 16-bit colour ({stored}) that is not read; save it as an RGB PNG")
    tiles = [tile._replace(args=_with_raw_mode(tile.args, other)) for tile in _tiles(lower)]
    lower.tile = tiles  # type: ignore[attr-defined]  # only image files have it
    image.load()
    lower.load()
    for (top, strip), (_, below) in zip(strips(image), strips(lower), strict=True):
        low = np.asarray(below)[..., 1:2] if other == "RGBA" else np.asarray(below)[..., :3]
        yield top, np.asarray(strip)[..., :3].astype(np.int32) * 256 + low, strip


def _tiles(image: Image.Image) -> list[Any]:
    """Return how the pixels of an image file are stored; empty after decoding."""
    return getattr(image, "tile", [])


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def _states_its_range(image: Image.Image) -> bool:
    """Return whether a file states a maximum level other than that of 16 bits."""
    return image.format == "PPM" and any(
        tile.codec_name != "raw" and tile.args[1:] != _STATED_FULL for tile in _tiles(image)
    )
