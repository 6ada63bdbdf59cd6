"""Transparent pictures, laid over white, and pictures in strips; no torch."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

_STRIP_PIXELS = 2**22


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom in pieces, each with the row that it begins at: what is made
    of a piece takes no second copy of a large picture."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def over_white(image: Image.Image) -> Image.Image:
    """An opaque picture of mode RGB: what a white page would show."""
    opaque = Image.new("RGB", image.size)
    for top, strip in strips(image):
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        opaque.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque
