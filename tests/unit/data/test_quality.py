"""Tests of findings on dark, over-exposed, blurred and odd-sized photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.data.checks.inspect_dataset import DatasetInspection
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.checks.quality import poor_photos


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A scene of rectangles with sharp edges."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    for _ in range(12):
        left, top = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        pixels[top : top + 30, left : left + 30] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def found(photos: list[Image.Image], folder: Path) -> list[tuple[int, str]]:
    inspections = DatasetInspection.of(len(photos))
    for at, image in enumerate(photos):
        path = folder / f"{at}.png"
        image.save(path)
        inspections.put(at, inspect_file(str(path), full=True))
    return [(one.at, one.kind) for one in poor_photos(inspections)]


@pytest.fixture
def sound() -> list[Image.Image]:
    return [photo(seed) for seed in range(12)]


def test_sound_photos_have_no_findings(sound: list[Image.Image], tmp_path: Path) -> None:
    assert found(sound, tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("dark", photo(90).point(lambda level: level // 6)),
        ("over_exposed", photo(91).point(lambda level: 200 + level // 6)),
        ("blurred", photo(92).filter(ImageFilter.GaussianBlur(6))),
        ("blurred", Image.new("RGB", (120, 90), (128, 128, 128))),
        ("odd_size", photo(93, (400, 60))),
        ("odd_size", photo(94, (24, 18))),
    ],
)
def test_one_poor_photo_is_found(
    kind: str, image: Image.Image, sound: list[Image.Image], tmp_path: Path
) -> None:
    assert (12, kind) in found([*sound, image], tmp_path)


def test_a_photo_that_is_sharp_somewhere_is_not_blurred(
    sound: list[Image.Image], tmp_path: Path
) -> None:
    blurred = photo(95).filter(ImageFilter.GaussianBlur(6))
    blurred.paste(photo(96, (50, 40)), (30, 30))
    assert found([*sound, blurred], tmp_path) == []


def test_a_wide_shape_is_usual_where_most_photos_have_it(tmp_path: Path) -> None:
    assert found([photo(seed, (400, 100)) for seed in range(6)], tmp_path) == []


def test_an_image_of_one_pixel_can_be_measured(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert inspect_file(str(tmp_path / "a.png"), full=True).sharpness == 0


def test_without_readable_photos_nothing_is_found() -> None:
    assert list(poor_photos(DatasetInspection.of(3))) == []
