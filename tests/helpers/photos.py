"""Small folders of drawn photos."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image


def draw_photos(
    folder: Path, *, classes: int = 2, count: int = 6, size: int = 40, seed: int = 0
) -> Path:
    """Class folders of noisy pictures that a network can tell apart by their colour."""
    rng = random.Random(seed)
    for label in range(classes):
        class_folder = folder / f"class_{label}"
        class_folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            color = tuple(
                200 if channel == label % 3 else rng.randrange(0, 120) for channel in range(3)
            )
            image = Image.new("RGB", (size + index, size), color)
            image.paste((255, 255, 255), (0, 0, 8 + index, size))  # a picture unlike its mirror
            image.save(class_folder / f"{index}.png")
    return folder
