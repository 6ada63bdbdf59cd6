"""Tests of decoding with torchvision and Pillow: same pixels in every image mode."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from finetune.data.loading import decoding
from finetune.data.loading.decoding import SAME_PIXELS, read_photo

SIZES = [(97, 61), (33, 200), (224, 224), (7, 5), (1, 1)]
Draw = Callable[[tuple[int, int]], Image.Image]


def photo(size: tuple[int, int]) -> Image.Image:
    """Waves and noise: smooth parts, edges and grain."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [127 + 120 * torch.sin(x / 7 + y / 11), 127 + 120 * torch.cos(x / 13), (3 * x) % 256.0]
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0)) * 12
    return F.to_pil_image((torch.stack(waves) + noise).clamp(0, 255).to(torch.uint8))


def by_pillow(path: Path) -> Tensor:
    with Image.open(path) as image:
        return F.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))


JPEG = [
    {"subsampling": subsampling, "progressive": progressive, "quality": quality}
    for subsampling in (0, 1, 2)
    for progressive in (False, True)
    for quality in (30, 83, 95)
]
ENCODINGS = [
    *(("JPEG", "RGB", options) for options in JPEG),
    ("JPEG", "RGB", {"keep_rgb": True}),
    ("JPEG", "L", {}),
]


def test_the_table_holds_what_is_tested_here() -> None:
    assert {(encoding, mode) for encoding, mode, _ in ENCODINGS} == SAME_PIXELS


@pytest.mark.parametrize(("encoding", "mode", "options"), ENCODINGS)
def test_torchvision_decodes_to_pillows_pixels(
    encoding: str, mode: str, options: dict[str, object], tmp_path: Path
) -> None:
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.{encoding.lower()}"
        photo(size).convert(mode).save(path, encoding, **options)
        assert torch.equal(read_photo(path), by_pillow(path))


def failing(*_: object) -> Tensor:
    raise DeprecationWarning("will be removed in a future release")


@pytest.mark.parametrize("decoder", [None, failing])
def test_pillow_decodes_where_torchvision_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: object
) -> None:
    path = tmp_path / "a.jpg"
    photo((97, 61)).save(path)
    monkeypatch.setattr(decoding, "decode_image", decoder)
    assert torch.equal(read_photo(path), by_pillow(path))


@pytest.mark.filterwarnings("error")
def test_photos_are_read_where_warnings_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo((97, 61)).save(path)
    assert torch.equal(read_photo(path), by_pillow(path))


def test_real_photos_decode_to_pillows_pixels(shared: Path) -> None:
    folders = ("ants_bees/train/ants", "flowers5/tulip", "cifar100/train/apple")
    for folder in folders:
        for path in sorted((shared / "data" / folder).glob("*.[jp]*g"))[:20]:
            assert torch.equal(read_photo(path), by_pillow(path))


@pytest.mark.parametrize("size", [(500, 375), (97, 61), (32, 32), (33, 200), (1600, 1200)])
@pytest.mark.parametrize("side", [64, 232, 256, 518])
def test_bilinear_resizing_of_tensors_is_within_a_level_of_pillows(
    size: tuple[int, int], side: int
) -> None:
    image = photo(size)
    bilinear = InterpolationMode.BILINEAR
    by_tensor = F.resize(F.pil_to_tensor(image), [side], interpolation=bilinear, antialias=True)
    resized = F.pil_to_tensor(F.resize(image, [side], interpolation=bilinear, antialias=True))
    assert int((by_tensor.int() - resized.int()).abs().max()) <= 1


@pytest.mark.parametrize("encoding", ["JPEG", "PNG"])
def test_a_photo_with_flipped_bits_ends_no_process(encoding: str, tmp_path: Path) -> None:
    """torchvision 0.29 reads a damaged PNG and is gone; Pillow looks for EXIF behind the pixels
    first, unless it has found some before them."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 1
    photo((97, 61)).save(buffer, encoding, exif=exif)
    path = tmp_path / "x"
    for seed in range(100):
        rng = random.Random(seed)
        content = bytearray(buffer.getvalue())
        for _ in range(rng.choice((1, 5, 50))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(Exception):  # nearly anything, but an answer
            assert read_photo(path).dtype == torch.uint8


@pytest.mark.parametrize("encoding", ["JPEG", "PNG"])
def test_a_truncated_photo_is_refused_as_pillow_refuses_it(encoding: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo((97, 61)).save(buffer, encoding)
    whole = buffer.getvalue()
    path = tmp_path / "x"
    for length in range(30, len(whole) - 1, len(whole) // 60):
        path.write_bytes(whole[:length])
        try:
            by_pillow(path)
        except Exception:
            with pytest.raises(Exception, match=r"."):
                read_photo(path)
        else:
            assert torch.equal(read_photo(path), by_pillow(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("encoding", ["JPEG", "PNG"])
def test_a_photo_is_turned_upright(encoding: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo((30, 20)).save(tmp_path / "x", encoding, exif=exif)
    pixels = read_photo(tmp_path / "x")
    assert pixels.shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))
    assert torch.equal(pixels, by_pillow(tmp_path / "x"))


def one_pixel(path: Path) -> list[int]:
    return read_photo(path)[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "value", "encoding", "expected"),
    [
        ("1", 1, "PNG", [255, 255, 255]),
        ("1", 0, "TIFF", [0, 0, 0]),
        ("L", 77, "BMP", [77, 77, 77]),
        ("LA", (100, 0), "PNG", [255, 255, 255]),
        ("LA", (100, 255), "PNG", [100, 100, 100]),
        ("RGBA", (200, 0, 0, 0), "PNG", [255, 255, 255]),
        ("RGBA", (200, 0, 0, 255), "WEBP", [200, 0, 0]),
        ("RGBA", (200, 0, 100, 51), "PNG", [244, 204, 224]),
        ("CMYK", (0, 0, 0, 255), "TIFF", [0, 0, 0]),
        ("CMYK", (255, 0, 0, 0), "TIFF", [0, 255, 255]),
        ("I;16", 65535, "PNG", [255, 255, 255]),
        ("I;16", 32896, "PNG", [128, 128, 128]),
        ("I;16", 257, "TIFF", [1, 1, 1]),
        ("RGB", (1, 2, 3), "PPM", [1, 2, 3]),
    ],
)
def test_known_pixels_come_out_of_every_mode(
    mode: str, value: object, encoding: str, expected: list[int], tmp_path: Path
) -> None:
    options = {"lossless": True} if encoding == "WEBP" else {}
    Image.new(mode, (4, 4), value).save(tmp_path / "x", encoding, **options)  # type: ignore[arg-type]
    assert one_pixel(tmp_path / "x") == expected


def test_a_palette_with_a_transparent_entry_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert one_pixel(tmp_path / "opaque.png") == [10, 20, 30]
    assert one_pixel(tmp_path / "clear.png") == [255, 255, 255]


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    red.save(tmp_path / "x.gif", save_all=True, append_images=[blue])
    assert one_pixel(tmp_path / "x.gif") == [255, 0, 0]


def test_postscript_named_jpg_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(OSError, match="cannot identify"):
        read_photo(tmp_path / "x.jpg")


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(decoding, "decode_image", None)
    with pytest.raises(OSError, match="exceeds limit"):
        read_photo(tmp_path / "bomb.png")


def test_pixels_without_a_known_white_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(OSError, match="white"):
        read_photo(tmp_path / "x.tif")


def test_sixteen_bits_a_channel_become_eight(tmp_path: Path) -> None:
    """Pillow calls such a PNG RGB; half of its bits go."""
    rows = b"".join(b"\0" + bytes([255, 255, 128, 128, 0, 0]) * 4 for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "x.png").write_bytes(content)
    pixels = read_photo(tmp_path / "x.png")
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0, 0].tolist() == [255, 128, 0]
