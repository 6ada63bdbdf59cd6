"""Transparent pictures, laid over white; no torch."""

from __future__ import annotations

from PIL import Image


def over_white(image: Image.Image) -> Image.Image:
    """An opaque picture of mode RGBA: what a white page would show."""
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
