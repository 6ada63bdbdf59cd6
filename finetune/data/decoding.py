"""From a file to the pixels of an upright RGB photo.

Pillow reads the header and decides what a file is. torchvision's decoder then takes the formats
and modes for which it gives Pillow's own pixels, level for level, in half the time (tested:
``tests/test_decoding.py``); Pillow takes the rest, and has the last word on every file that
torchvision refuses.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from finetune.data.images import PIL_FORMATS
from finetune.data.opaque import over_white

SAME_PIXELS = frozenset({("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")})
"""Format and mode that torchvision decodes to Pillow's pixels; upright and opaque ones only."""

_ORIENTATION = 0x0112
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_photo(path: str | os.PathLike[str]) -> Tensor:
    """uint8 pixels ``(3, H, W)``: upright (EXIF), RGB, transparency over white.

    Raises:
        OSError: it cannot be read or decoded, or has more pixels than Pillow's own limit against
            decompression bombs (179 million).
    """
    content = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=PIL_FORMATS)
        except Image.DecompressionBombError as error:
            raise OSError(str(error)) from error
    with image:
        if _is_plain(image):
            try:
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                decoded: Tensor = decode_image(encoded, ImageReadMode.RGB)
                if decoded.dtype == torch.uint8:  # Pillow calls a PNG of 16 bits a channel RGB too
                    return decoded
            except RuntimeError:
                pass
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Tensor:
    """uint8 pixels ``(3, H, W)`` of an image that is open: as `read_photo` gives those of a file.

    Raises:
        OSError: it cannot be decoded.
    """
    return _opaque_rgb(ImageOps.exif_transpose(image))


def _is_plain(image: Image.Image) -> bool:
    if (image.format, image.mode) not in SAME_PIXELS or "transparency" in image.info:
        return False
    return bool(image.getexif().get(_ORIENTATION, 1) == 1)


def _opaque_rgb(image: Image.Image) -> Tensor:
    if image.mode in _SIXTEEN_BITS:
        # Pillow would clip at 255: a 16-bit picture would turn white.
        levels: Tensor = F.pil_to_tensor(image).to(torch.int32) // 257
        return levels.clamp(0, 255).to(torch.uint8).expand(3, -1, -1)
    if image.mode == "F":
        raise OSError("floating point pixels have no known white")
    if image.has_transparency_data:
        image = over_white(image)
    pixels: Tensor = F.pil_to_tensor(image.convert("RGB"))
    return pixels
