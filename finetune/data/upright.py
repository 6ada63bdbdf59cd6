"""Which way up a photo is, by its EXIF as far as that can be read; imports no torch.

Pillow's own `exif_transpose` fails on EXIF that is damaged or that it cannot write back, which
programs that show photos ignore.
"""

from __future__ import annotations

from PIL import Image

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes a photo upright; None where it is already, or where nothing readable says."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's readers of EXIF raise nearly anything
        return None


def upright(image: Image.Image) -> Image.Image:
    """The photo as it is to be looked at.

    Raises:
        OSError: it cannot be decoded.
    """
    image.load()  # in some files the EXIF lies behind the pixels
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)
