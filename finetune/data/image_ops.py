"""Image operations: strips, compositing over white, EXIF orientation; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

_STRIP_PIXELS = 2**22


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield horizontal strips of an image from top to bottom, each with its first row.

    Processing strip by strip avoids a second copy of a large image.
    """
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def over_white(image: Image.Image) -> Image.Image:
    """Composite an image over white and return it in mode RGB."""
    opaque = Image.new("RGB", image.size)
    for top, strip in strips(image):
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        opaque.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque


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
    """Return the transpose that makes a photo upright, or None if EXIF names none."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's readers of EXIF raise nearly anything
        return None


def upright(image: Image.Image) -> Image.Image:
    """Return the photo with its EXIF orientation applied.

    Raises:
        OSError: The image cannot be decoded.
    """
    image.load()  # in some files the EXIF data comes after the pixels
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)
