"""Unusual, broken and malicious images, with the expected verdict on each.

    python helpers/odd_images.py FOLDER

inspects each image as a run, `check-data` and the network do, and prints as JSON the results, the
peak memory, and which processes were started.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.broken_files import BROKEN, damage, picture, save, written

Make = Callable[[Path], Path]
FINE = None
"""It can be read."""


@dataclass(frozen=True)
class Odd:
    """An image and its verdicts: a part of the reason, or None where it can be read.

    Attributes:
        quick: Of the look that every run begins with.
        full: Of ``check-data``.
        decodes: Whether the network is given its pixels.
    """

    make: Make
    quick: str | None
    full: str | None
    decodes: bool


def fine(make: Make) -> Odd:
    return Odd(make, FINE, FINE, True)


def refused(make: Make, reason: str) -> Odd:
    return Odd(make, reason, reason, False)


def in_mode(mode: str, **options: object) -> Make:
    return lambda path: save(path, picture(1).convert(mode), **options)


def png(
    width: int, height: int, *, kind: int = 2, depth: int = 8, chunks: tuple[bytes, ...] = ()
) -> Make:
    """A PNG of one colour, written row by row: of 64 million pixels in 200 kB.

    Args:
        kind: 0 grey, 2 RGB, 6 RGBA.
        chunks: Further ones, before the pixels.
    """
    channels = {0: 1, 2: 3, 6: 4}[kind]

    def make(path: Path) -> Path:
        packer = zlib.compressobj(1)
        row = b"\0" + b"\x7f" * (-(-width * channels * depth // 8))
        packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
        head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
        body = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
        return path

    return make


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def behind(content: bytes) -> Make:
    """A PNG with a further chunk after its pixels."""

    def make(path: Path) -> Path:
        whole = save(path, picture(3)).read_bytes()
        path.write_bytes(whole[:-12] + content + whole[-12:])
        return path

    return make


def tiff(bands: int, bits: int = 8, *, photometric: int = 1, compression: int = 1) -> Make:
    """A TIFF of 8 x 8 zeros."""
    count, kind = 8 * 8 * bands * bits // 8, 3
    depths = struct.pack(f"<{bands}H", *[bits] * bands)
    entries = [
        *((256, kind, 1, 8), (257, kind, 1, 8), (259, kind, 1, compression)),
        *((262, kind, 1, photometric), (277, kind, 1, bands), (279, 4, 1, count)),
    ]
    at = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries.append((273, 4, 1, at + len(depths)))
    small = len(depths) <= 4
    entries.append((258, kind, bands, int.from_bytes(depths, "little") if small else at))
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return written(head + packed + bytes(4) + depths + bytes(count))


def with_byte(marker: bytes, offset: int, value: int) -> Make:
    """A JPEG with another byte in the segment of this marker."""

    def make(path: Path) -> Path:
        whole = bytearray(save(path, picture(3)).read_bytes())
        whole[whole.find(marker) + offset] = value
        path.write_bytes(whole)
        return path

    return make


def packed_text(size: int) -> bytes:
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size)))


def packed_profile(size: int) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(size)))


def with_exif(content: bytes) -> Make:
    return lambda path: save(path, picture(2), exif=content)


def turned(value: int) -> Make:
    exif = Image.Exif()
    exif[0x0112] = value
    return with_exif(exif.tobytes())


def patched(at: int, content: bytes, **options: object) -> Make:
    """A sound file with some of its bytes replaced."""

    def make(path: Path) -> Path:
        whole = bytearray(save(path, picture(3), **options).read_bytes())
        whole[at : at + len(content)] = content
        path.write_bytes(whole)
        return path

    return make


def jpeg_of_size(width: int, height: int) -> Make:
    """A JPEG whose frame header states another size."""

    def make(path: Path) -> Path:
        whole = bytearray(save(path, picture(3)).read_bytes())
        at = whole.find(b"\xff\xc0") + 5
        whole[at : at + 4] = struct.pack(">HH", height, width)
        path.write_bytes(whole)
        return path

    return make


def tiff_loop(path: Path) -> Path:
    """A TIFF whose list of pages ends in itself."""
    whole = bytearray(save(path, picture(4)).read_bytes())
    (first,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, first)
    struct.pack_into("<I", whole, first + 2 + 12 * entries, first)
    path.write_bytes(whole)
    return path


def webp_canvas(path: Path) -> Path:
    """A WebP whose canvas is 16,383 pixels a side, around a picture of 64 x 48."""
    inner = save(path, picture(5), lossless=True).read_bytes()[12:]
    side = (16_382).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    body = b"WEBP" + extended + inner
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def several(kind: str) -> Make:
    frames = [picture(seed) for seed in (6, 7)]
    return lambda path: save(path, picture(8), save_all=True, append_images=frames, format=kind)


def deep(path: Path) -> Path:
    levels = np.asarray(picture(9).convert("L")).astype(np.uint16) * 257
    return save(path, Image.fromarray(levels))


def float_tiff(path: Path) -> Path:
    return save(path, Image.fromarray(np.linspace(0, 1, 48 * 64, dtype="f4").reshape(48, 64)))


def lying(path: Path) -> Path:
    """A link to a sound picture."""
    path.symlink_to(save(path.parent / "elsewhere" / "sound.jpg", picture(1)))
    return path


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n"
_TIFF_OF_4_GIGAPIXELS = struct.pack(
    "<2sHIHHHIIHHIII", b"II", 42, 8, 2, 256, 4, 1, 65_000, 257, 4, 1, 65_000, 0
)
_SMALL = "has {:,} pixels, more than the 64,000,000 that are read"

ODD: dict[str, Odd] = {
    **{name: refused(make, reason) for name, (make, reason) in BROKEN.items()},
    # Sound in every way that Pillow knows
    "rgb.jpg": fine(in_mode("RGB")),
    "grey.jpg": fine(in_mode("L")),
    "cmyk.jpg": fine(in_mode("CMYK")),
    "progressive.jpg": fine(in_mode("RGB", progressive=True)),
    "rgb.png": fine(in_mode("RGB")),
    "transparent.png": fine(in_mode("RGBA")),
    "grey-transparent.png": fine(in_mode("LA")),
    "palette.png": fine(in_mode("P")),
    "palette-transparent.png": fine(in_mode("P", transparency=1)),
    "one-bit.png": fine(in_mode("1")),
    "sixteen.png": fine(deep),
    "sixteen.tif": fine(deep),
    "ycbcr.tif": fine(in_mode("YCbCr")),
    "cmyk.tif": fine(in_mode("CMYK")),
    "lab.tif": fine(in_mode("LAB")),
    "float.tif": refused(float_tiff, "floating point pixels"),
    "rgb.webp": fine(in_mode("RGB")),
    "moving.gif": fine(several("GIF")),
    "moving.webp": fine(several("WEBP")),
    "moving.png": fine(several("PNG")),
    "pages.tif": fine(several("TIFF")),
    "pages-without-end.tif": fine(tiff_loop),
    "preview.jpg": fine(several("MPO")),
    "turned.jpg": fine(turned(6)),
    "turned-nowhere.jpg": fine(turned(99)),
    "link.jpg": fine(lying),
    # Damage beside the pixels
    "exif-garbage.jpg": fine(with_exif(b"Exif\0\0" + bytes(range(200)))),
    "exif-cut.jpg": fine(with_exif(b"Exif\0\0II*\0\x08\0\0\0\xff")),
    "more-behind.jpg": fine(patched(10**6, b"maker notes" * 99)),
    "scan-garbage.jpg": fine(patched(900, b"\x55" * 40)),
    # Damage that only decoding finds
    "pixels-garbage.png": Odd(damage, FINE, "", False),
    # Something else by this name
    "postscript.jpg": refused(written(_EPS), "is PostScript"),
    "pdf.jpg": refused(written(b"%PDF-1.7\n"), "is a PDF"),
    "svg.png": refused(written(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is an SVG"),
    "archive.jpg": refused(written(b"PK\3\4" + bytes(60)), "is a ZIP archive"),
    "photoshop.jpg": refused(written(b"8BPS\0\1" + bytes(60)), "is a Photoshop file"),
    "fits.png": refused(written(b"SIMPLE  =                    T" * 9), "is text, not an image"),
    "icon.png": refused(in_mode("RGB", format="ICO"), "is not an image"),
    "jpeg2000.jpg": refused(in_mode("RGB", format="JPEG2000"), ""),
    "avif.jpg": refused(written(b"\0\0\0\x20ftypavif" + bytes(40)), "is AVIF"),
    # Sizes
    "bomb-144.png": refused(png(12_000, 12_000), _SMALL.format(144_000_000)),
    "bomb-400.png": refused(png(20_000, 20_000, kind=0, depth=1), _SMALL.format(400_000_000)),
    "stated.jpg": refused(jpeg_of_size(65_500, 65_500), _SMALL.format(65_500**2)),
    "stated.tif": refused(written(_TIFF_OF_4_GIGAPIXELS), ""),
    "stated.ppm": refused(written(b"P6 100000 100000 255\n"), _SMALL.format(10**10)),
    "stated-empty.ppm": refused(written(b"P6 8000 8000 255\n"), "truncated"),
    "nothing.ppm": refused(written(b"P6 0 0 255\n"), ""),
    "stated.gif": refused(patched(6, b"\xff" * 4), _SMALL.format(65_535**2)),
    "stated.bmp": refused(patched(18, struct.pack("<ii", 2**20, 2**20)), _SMALL.format(2**40)),
    "canvas.webp": refused(webp_canvas, ""),
    "largest.png": fine(png(8_000, 8_000)),
    "largest-transparent.png": fine(png(8_000, 8_000, kind=6)),
    "largest-sixteen.png": fine(png(8_000, 8_000, kind=0, depth=16)),
    "line.png": fine(png(60_000, 1)),
    "column.png": fine(png(1, 60_000)),
    "text-bomb.png": refused(png(8, 8, chunks=(packed_text(10**8),)), "its metadata"),
    "profile-bomb.png": refused(png(8, 8, chunks=(packed_profile(10**8),)), "its metadata"),
    "text-bomb-behind.png": refused(behind(packed_text(10**8)), "its metadata"),
    "texts-bomb.png": refused(png(8, 8, chunks=(packed_text(10**6),) * 70), "its metadata"),
    # Much metadata
    "text.png": fine(png(8, 8, chunks=(packed_text(2 * 10**6),))),
    "profile.png": fine(png(8, 8, chunks=(packed_profile(2 * 10**6),))),
    "text-behind.png": fine(behind(packed_text(2 * 10**6))),
    "profile-behind.png": fine(behind(packed_profile(2 * 10**6))),
    "plain-text.png": fine(png(8, 8, chunks=(chunk(b"tEXt", b"Comment\0" + b"x" * 2 * 10**6),))),
    "plain-text-behind.png": fine(behind(chunk(b"tEXt", b"Comment\0" + b"x" * 2 * 10**6))),
    "profile.jpg": fine(in_mode("RGB", icc_profile=b"x" * 2 * 10**6)),
    "profile.webp": fine(in_mode("RGB", icc_profile=b"x" * 2 * 10**6)),
    "xmp.webp": fine(in_mode("RGB", xmp=b"x" * 2 * 10**6)),
    "comment.gif": fine(in_mode("P", comment=b"x" * 2 * 10**6)),
    "description.tif": fine(in_mode("RGB", tiffinfo={270: "x" * 2 * 10**6})),
    # Sound, but of kinds that are not read
    "bands-5.tif": refused(tiff(5), "is a TIFF with 5 bands of 8 bits"),
    "bands-13.tif": refused(tiff(13, 16), "is a TIFF with 13 bands of 16 bits"),
    "bands-5-rgb.tif": refused(tiff(5, photometric=2), "is a TIFF with 5 bands of 8 bits"),
    "bits-64.tif": refused(tiff(1, 64), "is a TIFF with 1 band of 64 bits"),
    "compressed.tif": refused(tiff(3, photometric=2, compression=34712), "compression 34712"),
    "bits-12.jpg": refused(with_byte(b"\xff\xc0", 4, 12), "12-bit"),
    "bands-2.jpg": refused(with_byte(b"\xff\xc0", 9, 2), "2-layer"),
    "bits-2.bmp": refused(patched(28, b"\2"), "Unsupported BMP pixel depth"),
    "any.ppm": refused(written(b"P7\nWIDTH 2\nHEIGHT 2\nENDHDR\n" + bytes(12)), "is a PAM file"),
}

_STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.spawn")


def look_at_all(folder: Path) -> dict[str, Any]:
    """The verdicts, what was started, and the peak of memory in MiB."""
    import torch

    from finetune.config.schema import PreprocessingConfig
    from finetune.data.checks.inspect_file import inspect_file
    from finetune.data.loading.decoding import read_photo
    from finetune.data.loading.transforms import build_fit

    started: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event.startswith(_STARTS):
            started.append(f"{event} {arguments}")

    torch.set_num_threads(1)
    before = _peak_mib()
    fits = [
        build_fit(PreprocessingConfig(resize=232, crop=224, interpolation=how, fit=fit))
        for how, fit in (("bilinear", "crop"), ("bicubic", "crop"), ("bilinear", "pad"))
    ]
    sys.addaudithook(watch)
    verdicts: dict[str, dict[str, Any]] = {}
    for name, path in placed(folder):
        verdict: dict[str, Any] = {
            "quick": inspect_file(str(path), full=False).reason,
            "full": inspect_file(str(path), full=True).reason,
        }
        try:
            pixels = read_photo(path)
            verdict["shapes"] = sorted({tuple(fit(pixels).shape) for fit in fits})
        except Exception as error:
            verdict["error"] = f"{type(error).__name__}: {error}"
        verdict["peak_mib"] = _peak_mib()
        verdicts[name] = verdict
    watching = False
    return {"verdicts": verdicts, "started": started, "before": before, "peak_mib": _peak_mib()}


def placed(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((name, folder / name) for name in ODD)


def make_all(folder: Path) -> None:
    """Write the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in placed(folder):
        ODD[name].make(path)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(look_at_all(Path(sys.argv[1]))))
