"""Decoding of an image file to upright RGB pixels.

Pillow reads the header and identifies the format. torchvision decodes JPEG, for which it returns
exactly Pillow's pixels in half the time (``tests/unit/data/test_decoding.py``). Pillow decodes all
other formats, and every file that torchvision rejects. PNG is not decoded with torchvision: a
damaged PNG would crash the process (SIGSEGV, torchvision 0.29), and an intact one gains little.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from finetune.config.data import FULL_RANGE
from finetune.data.image_ops import over_white, strips, turn_of
from finetune.data.images import PIL_FORMATS, refusal
from finetune.data.levels import GREY, colour_strips, in_8_bits, stored_colour, white_of
from finetune.data.png_metadata import without_large_metadata
from finetune.data.quiet_decoding import warnings_ignored

try:
    from torchvision.io import ImageReadMode, decode_image
except Exception:  # deprecated in torchvision; Pillow returns the same pixels
    decode_image = None

SAME_PIXELS = frozenset({("JPEG", "RGB"), ("JPEG", "L")})
"""Formats and modes that torchvision decodes to the same pixels as Pillow, if upright."""


def read_photo(path: str | os.PathLike[str], levels: int | None = None) -> Tensor:
    """Return uint8 RGB pixels ``(3, H, W)``, upright by EXIF, with transparency over white.

    Args:
        levels: White level for channels with more than 8 bits; None means 65535.

    Raises:
        OSError: The file cannot be read or decoded, or has too many pixels.
    """
    if not Path(path).is_file() and Path(path).exists():
        raise OSError("is not a regular file")  # reading a pipe could block forever
    content = Path(path).read_bytes()
    with warnings_ignored():
        return _decoded(content, levels)


def _decoded(content: bytes, levels: int | None) -> Tensor:
    try:
        image = Image.open(without_large_metadata(io.BytesIO(content)), formats=PIL_FORMATS)
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    with image:
        refused = refusal(image.mode, image.width, image.height)
        if refused is not None:
            raise OSError(refused)
        if decode_image is not None and _is_plain(image):
            with contextlib.suppress(Exception):  # Pillow decodes it instead
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                decoded: Tensor = decode_image(encoded, ImageReadMode.RGB)
                return decoded
        white = white_of(image, levels)
        if white != FULL_RANGE and stored_colour(image):
            return _upright(image, colour_strips(image, content, white), white)
        return _upright_rgb(image, levels)


def upright_rgb(image: Image.Image, levels: int | None = None) -> Tensor:
    """Return the pixels of an open image, as `read_photo` does for a file: uint8 ``(3, H, W)``.

    Raises:
        OSError: The image cannot be decoded.
    """
    with warnings_ignored():
        return _upright_rgb(image, levels)


def _upright_rgb(image: Image.Image, levels: int | None) -> Tensor:
    white = white_of(image, levels)
    image.load()  # in some files the EXIF data comes after the pixels
    return _upright(image, strips(image), white)


def _upright(image: Image.Image, pieces: Iterable[tuple[int, Image.Image]], white: int) -> Tensor:
    pixels = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    for top, strip in pieces:
        pixels[:, top : top + strip.height] = _opaque_rgb(strip, white)
    turn = turn_of(image)
    return pixels if turn is None else _turned(pixels, turn)


def _is_plain(image: Image.Image) -> bool:
    return (image.format, image.mode) in SAME_PIXELS and turn_of(image) is None


def _opaque_rgb(image: Image.Image, white: int) -> Tensor:
    if image.mode in GREY:
        # Pillow would clip at 255, so that a 16-bit image would become white.
        grey = in_8_bits(np.asarray(image).astype(np.int32), white)
        return torch.from_numpy(grey).expand(3, -1, -1)
    if image.mode == "F":
        raise OSError("floating point pixels have no known white")
    if image.has_transparency_data:
        image = over_white(image)
    pixels: Tensor = F.pil_to_tensor(image.convert("RGB"))
    return pixels


def _turned(pixels: Tensor, turn: Image.Transpose) -> Tensor:
    """Apply a Pillow transpose to pixels ``(3, H, W)``, without a second Pillow image."""
    kinds = Image.Transpose
    if turn in (kinds.TRANSPOSE, kinds.TRANSVERSE, kinds.ROTATE_90, kinds.ROTATE_270):
        pixels = pixels.transpose(1, 2)
    flips = {
        kinds.FLIP_LEFT_RIGHT: [2],
        kinds.FLIP_TOP_BOTTOM: [1],
        kinds.ROTATE_180: [1, 2],
        kinds.ROTATE_90: [1],
        kinds.ROTATE_270: [2],
        kinds.TRANSVERSE: [1, 2],
    }
    return pixels.flip(flips.get(turn, [])).contiguous()
