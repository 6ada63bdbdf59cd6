"""From a file to the pixels of an upright RGB photo.

Pillow reads the header and decides what a file is. torchvision's decoder then takes JPEG, for which
it gives Pillow's own pixels, level for level, in half the time (``tests/test_decoding.py``); Pillow
takes the rest, and has the last word on every file that torchvision refuses. A PNG that is damaged
would end the process (SIGSEGV, torchvision 0.29), and gains little where it is sound.
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

from finetune.config_data import FULL_RANGE
from finetune.data.images import PIL_FORMATS, refusal
from finetune.data.levels import GREY, colour_strips, in_8_bits, stored_colour, white_of
from finetune.data.opaque import over_white, strips
from finetune.data.png_metadata import without_large_metadata
from finetune.data.quiet import warnings_ignored
from finetune.data.upright import turn_of

try:
    from torchvision.io import ImageReadMode, decode_image
except Exception:  # torchvision deprecates it; Pillow gives the same pixels
    decode_image = None

SAME_PIXELS = frozenset({("JPEG", "RGB"), ("JPEG", "L")})
"""Format and mode that torchvision decodes to Pillow's pixels; upright ones only."""


def read_photo(path: str | os.PathLike[str], levels: int | None = None) -> Tensor:
    """uint8 pixels ``(3, H, W)``: upright (EXIF), RGB, transparency over white.

    Args:
        levels: The level that is white where channels have more than 8 bits; None is 65535.

    Raises:
        OSError: it cannot be read or decoded, or has more pixels than are read.
    """
    if not Path(path).is_file() and Path(path).exists():
        raise OSError("is no regular file")  # a pipe would be waited for without end
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
            with contextlib.suppress(Exception):  # Pillow has the last word
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                decoded: Tensor = decode_image(encoded, ImageReadMode.RGB)
                return decoded
        white = white_of(image, levels)
        if white != FULL_RANGE and stored_colour(image):
            return _upright(image, colour_strips(image, content, white), white)
        return _upright_rgb(image, levels)


def upright_rgb(image: Image.Image, levels: int | None = None) -> Tensor:
    """uint8 pixels ``(3, H, W)`` of an image that is open: as `read_photo` gives those of a file.

    Raises:
        OSError: it cannot be decoded.
    """
    with warnings_ignored():
        return _upright_rgb(image, levels)


def _upright_rgb(image: Image.Image, levels: int | None) -> Tensor:
    white = white_of(image, levels)
    image.load()  # in some files the EXIF lies behind the pixels
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
        # Pillow would clip at 255: a 16-bit picture would turn white.
        grey = in_8_bits(np.asarray(image).astype(np.int32), white)
        return torch.from_numpy(grey).expand(3, -1, -1)
    if image.mode == "F":
        raise OSError("floating point pixels have no known white")
    if image.has_transparency_data:
        image = over_white(image)
    pixels: Tensor = F.pil_to_tensor(image.convert("RGB"))
    return pixels


def _turned(pixels: Tensor, turn: Image.Transpose) -> Tensor:
    """``(3, H, W)`` turned as Pillow turns a picture, without a second picture of Pillow's."""
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
