"""Tests of file inspection, its cache, and workers that die."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import broken_files
from helpers.broken_files import BROKEN, ODD_NAMES, cut, damage, picture, save
from helpers.deadly_worker import deadly
from helpers.messages import fails
from PIL import Image

from finetune.core.cores import available_cores
from finetune.data import image_ops
from finetune.data.checks.inspect_file import FileInspection, inspect_file
from finetune.data.checks.inspection_cache import (
    InspectionCache,
    inspection_cache_file,
    key_of_file,
)
from finetune.data.checks.near_duplicates import near_pairs
from finetune.data.checks.worker_pool import inspect_all
from finetune.data.quiet_decoding import warnings_ignored

Make = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Ignore warnings, as all callers of the inspection do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_words(tmp_path: Path, name: str, full: bool) -> None:
    make, said = BROKEN[name]
    look = inspect_file(str(make(tmp_path / name)), full=full)
    assert look.reason is not None
    assert said in look.reason
    assert "\n" not in look.reason


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "name", ["a.jpg", "a.jpeg", "a.PNG", "a.webp", "a.bmp", "a.tif", "a.ppm", "a.gif", *ODD_NAMES]
)
def test_a_whole_file_can_be_read(tmp_path: Path, name: str, full: bool) -> None:
    path = tmp_path / name
    path.write_bytes(save(tmp_path / "x" / f"a{path.suffix.lower()}").read_bytes())
    look = inspect_file(str(path), full=full)
    assert (look.reason, look.width, look.height) == (None, 64, 48)


def test_no_permission_is_said_and_not_remembered(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    look = inspect_file(str(path), full=True)
    assert look.reason == "permission denied"
    assert not look.lasting


def test_a_bomb_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", None)
    look = inspect_file(str(broken_files.bomb(tmp_path / "b.png")), full=True)
    assert look.reason is not None


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"maker notes")
    assert inspect_file(str(path), full=False).reason is None


def test_a_quick_look_decodes_no_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path / f"a.{kind}") for kind in ("jpg", "png", "webp", "bmp", "gif")]
    monkeypatch.setattr(Image.Image, "load", None)
    assert all(inspect_file(str(path), full=False).reason is None for path in paths)


def test_a_full_look_finds_what_a_quick_one_cannot(tmp_path: Path) -> None:
    path = str(damage(tmp_path / "a.png"))
    assert inspect_file(path, full=False).reason is None
    assert inspect_file(path, full=True).reason is not None


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *(("L", "a.png"), ("LA", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("1", "a.png")),
        *(("CMYK", "a.jpg"), ("P", "a.gif"), ("CMYK", "a.tif")),
    ],
)
def test_every_mode_is_looked_at(tmp_path: Path, mode: str, name: str) -> None:
    look = inspect_file(str(save(tmp_path / name, picture(0).convert(mode))), full=True)
    assert (look.reason, look.mode) == (None, mode)
    assert len(look.pixels) == 16


def test_sixteen_bits_are_no_plain_picture(tmp_path: Path) -> None:
    deep = Image.fromarray(np.asarray(picture(0).convert("L")).astype(np.uint16) * 200)
    look = inspect_file(str(save(tmp_path / "a.png", deep)), full=True)
    eight = inspect_file(str(save(tmp_path / "b.png", picture(0).convert("L"))), full=True)
    assert look.phash is not None
    assert eight.phash is not None
    assert (look.phash ^ eight.phash).bit_count() <= 4


def test_frames_are_counted_and_the_first_one_is_looked_at(tmp_path: Path) -> None:
    first = picture(1).convert("P")
    more = [picture(2).convert("P"), picture(3).convert("P")]
    moving = save(tmp_path / "a.gif", first, save_all=True, append_images=more)
    still = save(tmp_path / "b.gif", first)
    one, other = (inspect_file(str(path), full=True) for path in (moving, still))
    assert (one.frames, other.frames) == (3, 1)
    assert one.phash == other.phash


def test_a_turned_photo_is_looked_at_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    look = inspect_file(str(save(tmp_path / "a.jpg", exif=exif)), full=True)
    assert (look.width, look.height) == (48, 64)


def test_the_same_pixels_in_another_file_are_the_same(tmp_path: Path) -> None:
    png = inspect_file(str(save(tmp_path / "a.png", picture(0))), full=True)
    bmp = inspect_file(str(save(tmp_path / "a.bmp", picture(0))), full=True)
    other = inspect_file(str(save(tmp_path / "b.png", picture(1))), full=True)
    assert png.pixels == bmp.pixels != other.pixels


def test_large_pictures_are_hashed_strip_by_strip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(save(tmp_path / "a.png"))
    whole = inspect_file(path, full=True).pixels
    monkeypatch.setattr(image_ops, "_STRIP_PIXELS", 250)
    assert inspect_file(path, full=True).pixels == whole


@pytest.mark.parametrize("options", [{"quality": 40}, {"size": (32, 24)}, {"size": (128, 96)}])
def test_a_resized_or_recompressed_photo_has_nearly_the_same_perceptual_hash(
    tmp_path: Path, options: dict[str, object]
) -> None:
    size = options.pop("size", (64, 48))
    one = inspect_file(str(save(tmp_path / "a.png", picture(0))), full=True)
    changed = save(tmp_path / "b.jpg", picture(0).resize(size), **options)  # type: ignore[arg-type]
    other = inspect_file(str(changed), full=True)
    assert one.phash is not None
    assert other.phash is not None
    assert (one.phash ^ other.phash).bit_count() <= 4


def test_a_plain_picture_has_no_perceptual_hash(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.png", Image.new("RGB", (64, 64), "white"))
    assert inspect_file(str(plain), full=True).phash is None


# Remembered


def test_a_look_is_remembered_whole(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.jpg"))
    look = inspect_file(path, full=True)
    key = key_of_file(path)
    assert key is not None
    with InspectionCache() as remembered:
        remembered.keep([(key, look)])
    with InspectionCache() as remembered:
        assert remembered.find([key, b"other", None]) == {key: look}


def test_a_changed_file_is_unknown(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    before = key_of_file(str(path))
    os.utime(path, ns=(0, 0))
    assert key_of_file(str(path)) != before
    assert key_of_file(str(tmp_path / "absent.jpg")) is None


@pytest.mark.parametrize("way", ["rewritten", "renamed"])
def test_a_file_exchanged_for_one_of_equal_size_and_time_is_unknown(
    tmp_path: Path, way: str
) -> None:
    """Archives unpack with equal times, and uncompressed photos of one size have equal sizes."""
    path, other = tmp_path / "a.bmp", tmp_path / "b.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    Image.new("RGB", (8, 8), "blue").save(other)
    os.utime(path, ns=(0, 0))
    before = key_of_file(str(path))
    if way == "renamed":
        os.utime(other, ns=(0, 0))
        other.replace(path)
    else:
        path.write_bytes(other.read_bytes())
        os.utime(path, ns=(0, 0))
    assert path.stat().st_mtime_ns == 0
    assert key_of_file(str(path)) != before


def test_what_may_pass_is_not_remembered(tmp_path: Path) -> None:
    with InspectionCache() as remembered:
        remembered.keep([(b"k", FileInspection(reason="no permission", lasting=False))])
        assert remembered.find([b"k"]) == {}


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_damaged_memory_is_begun_anew(content: bytes) -> None:
    inspection_cache_file().parent.mkdir(parents=True, exist_ok=True)
    inspection_cache_file().write_bytes(content)
    with InspectionCache() as remembered:
        remembered.keep([(b"k", FileInspection(format="PNG"))])
        assert remembered.find([b"k"]) == {b"k": FileInspection(format="PNG")}


def test_without_a_place_nothing_is_remembered_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with InspectionCache(tmp_path / "file" / "looks.sqlite") as remembered:
        remembered.keep([(b"k", FileInspection())])
        remembered.forget_old()
        assert remembered.find([b"k"]) == {}


def test_old_looks_are_forgotten() -> None:
    with InspectionCache() as remembered:
        remembered.keep([(b"k", FileInspection()), (b"n", FileInspection())])
        with sqlite3.connect(inspection_cache_file()) as database:
            database.execute("UPDATE looks_5 SET day = 0 WHERE key = ?", (b"k",))
        database.close()
        remembered.forget_old()
        assert set(remembered.find([b"k", b"n"])) == {b"n"}


def test_many_files_are_found_at_once() -> None:
    keys = [str(number).encode() for number in range(1300)]
    with InspectionCache() as remembered:
        remembered.keep((key, FileInspection(width=int(key))) for key in keys)
        assert all(look.width == int(key) for key, look in remembered.find(keys).items())
        assert len(remembered.find(keys)) == 1300


# Failures of the machine


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MACHINE = {
    "memory": MemoryError(),
    "warning": DeprecationWarning("will be removed"),
    "import": ImportError("no such library"),
    "attribute": AttributeError("no such decoder"),
    "missing decoder": caused_by(OSError("decoder jpeg not available"), AttributeError("jpeg")),
    "wrapped memory": caused_by(ValueError("no tile"), MemoryError()),
    "files": OSError(errno.EMFILE, "Too many open files"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "allocator": RuntimeError("can't allocate memory"),
}


@pytest.mark.parametrize("place", ["open", "load", "hash"])
@pytest.mark.parametrize("name", MACHINE)
def test_what_the_machine_failed_at_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MACHINE[name]

    path = str(save(tmp_path / "a.jpg"))
    where, what = {
        "open": ("PIL.Image.open", fail),
        "load": ("PIL.ImageFile.ImageFile.load", fail),
        "hash": ("finetune.data.checks.inspect_file._perceptual_hash", fail),
    }[place]
    monkeypatch.setattr(where, what)
    look = inspect_file(path, full=True)
    assert look.reason
    assert not look.lasting


@pytest.mark.parametrize("place", ["PIL.Image.open", "PIL.ImageFile.ImageFile.load"])
def test_a_decoders_complaint_without_free_memory_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """libjpeg and libwebp call a sound file broken where they are given no memory."""

    def complain(*_: object, **__: object) -> None:
        raise OSError("broken data stream when reading image file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    path = str(save(tmp_path / "a.jpg"))
    monkeypatch.setattr(place, complain)
    assert inspect_file(path, full=True).lasting
    monkeypatch.setattr("mmap.mmap", full)
    look = inspect_file(path, full=True)
    assert (look.lasting, look.machine_fault) == (False, True)


_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from finetune.data.checks.inspect_file import inspect_file
inspect_file(sys.argv[1], full=True)  # loads the libraries
status = Path("/proc/self/status").read_text().split("VmData:")[1]
room = int(status.split()[0]) * 1024 + 2**25
resource.setrlimit(resource.RLIMIT_DATA, (room, room))
look = inspect_file(sys.argv[1], full=True)
print(bool(look.reason), look.lasting, look.machine_fault)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings only on Linux")
def test_a_limit_on_data_counts_as_too_little_memory(tmp_path: Path) -> None:
    path = cut(save(tmp_path / "a.jpg"))
    command = [sys.executable, "-c", _WITH_LITTLE_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_a_decoder_that_pillow_lacks_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(save(tmp_path / "a.webp"))
    monkeypatch.setattr("PIL.WebPImagePlugin.SUPPORTED", False)
    look = inspect_file(path, full=False)
    assert "cannot read WEBP" in str(look.reason)
    assert (look.lasting, look.machine_fault) == (False, True)


@pytest.mark.parametrize("full", [False, True])
def test_a_photo_that_is_warned_about_is_read_where_warnings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    real = Image.open

    def warning(*args: Any, **options: Any) -> Image.Image:
        warnings.warn("Metadata Warning", UserWarning, stacklevel=1)
        return real(*args, **options)

    path = str(save(tmp_path / "a.jpg"))
    monkeypatch.setattr(Image, "open", warning)
    warnings.simplefilter("error")
    assert inspect_file(path, full=full).reason is None


def test_threads_that_ignore_warnings_leave_the_filters_as_they_were() -> None:
    warnings.simplefilter("error")
    before = list(warnings.filters)

    def warn(number: int) -> None:
        with warnings_ignored():
            time.sleep(0.001 * (number % 3))
            warnings.warn("within", UserWarning, stacklevel=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(warn, range(40)))
    assert list(warnings.filters) == before


# In processes


def test_a_file_that_kills_its_worker_is_named_and_no_other_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.data.checks.worker_pool._FILES_AT_ONCE", 8)
    paths = [str(save(tmp_path / f"{i}.png", picture(i, (8, 8)))) for i in range(70)]
    paths[40] = str(save(tmp_path / "deadly.png"))
    looked = dict(look for some in inspect_all(paths, range(70), 2, deadly) for look in some)
    assert sorted(looked) == list(range(70))
    died = {at: look.reason for at, look in looked.items() if look.reason}
    assert list(died) == [40]
    assert "died" in str(died[40])
    assert not looked[40].lasting


def test_workers_that_always_die_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.data.checks.worker_pool._MOST_CRASHES_ON_END", 2)
    paths = [str(tmp_path / f"deadly{i}.png") for i in range(3)]
    with fails("data.worker_died"):
        list(inspect_all(paths, range(3), 1, deadly))


def test_at_least_one_processor_is_used() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# Near pairs


def flip(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def test_every_near_pair_is_found_once() -> None:
    rng = np.random.default_rng(0)
    values = [int(v) for v in rng.integers(0, 2**63, 300, dtype=np.uint64)]
    for at in range(100):  # the second hundred lies 0 to 7 bits beside the first
        values[100 + at] = flip(values[at], rng.choice(64, at % 8, replace=False).tolist())
    hashes = np.array(values, dtype=np.uint64)
    expected = {
        (i, j)
        for i in range(300)
        for j in range(i + 1, 300)
        if (values[i] ^ values[j]).bit_count() <= 4
    }
    found = near_pairs(hashes)
    assert found.complete
    assert sorted(map(tuple, found.pairs.tolist())) == sorted(expected)


def test_many_equal_hashes_make_a_chain_not_a_square() -> None:
    found = near_pairs(np.full(5000, 12345, dtype=np.uint64))
    assert found.pairs.tolist() == [[0, i] for i in range(1, 5000)]


def test_no_hashes_have_no_pairs() -> None:
    assert near_pairs(np.array([], dtype=np.uint64)).pairs.shape == (0, 2)


def test_too_many_comparisons_are_stopped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.checks.near_duplicates._MOST_COMPARED", 10)
    hashes = np.arange(1000, dtype=np.uint64)
    assert not near_pairs(hashes).complete


def test_cut_is_cut(tmp_path: Path) -> None:
    whole = save(tmp_path / "b" / "a.jpg").stat().st_size
    assert cut(tmp_path / "a.jpg").stat().st_size < whole
