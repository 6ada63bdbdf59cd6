"""Tests of ``data.levels``: white level of images with more than 8 bits per channel."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.odd_images import chunk
from numpy.typing import NDArray
from PIL import Image

import finetune
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands import report, show_batch
from finetune.commands.check_data import check_data
from finetune.commands.evaluate import EvalOptions, compute, evaluate_checkpoint
from finetune.commands.export import export
from finetune.commands.predict import predict
from finetune.commands.train import train
from finetune.config.schema import Config, DataConfig
from finetune.core.errors import DataError
from finetune.core.reporter import SilentReporter
from finetune.data import levels as levels_module
from finetune.data.levels import Extent, auto_levels, load_with_white, settled_levels
from finetune.data.loading.decoding import read_photo, upright_rgb
from finetune.freezing.graph_split import FrozenPrefix

Make = Callable[..., Config]
RAMP = np.array([[0, 1, 100, 1023, 2047, 4000, 4095]])
IN_8_BITS = (RAMP * 255 // 4095).tolist()[0]


class Heard(SilentReporter):
    """A `Reporter` that remembers its warnings."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def png(path: Path, pixels: NDArray[Any]) -> Path:
    """16 bits a channel: grey, grey and alpha, RGB or RGBA, by the shape (H, W) or (H, W, C)."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    head = struct.pack(
        ">IIBBBBB",
        pixels.shape[1],
        pixels.shape[0],
        16,
        {1: 0, 2: 4, 3: 2, 4: 6}[channels],
        0,
        0,
        0,
    )
    packed = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    body = [chunk(b"IHDR", head), chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return path


def tiff(path: Path, pixels: NDArray[Any], kind: str, *, deflated: bool = False) -> Path:
    """Write a TIFF of numpy type ``kind``: grey (H, W) or RGB (H, W, 3)."""
    stored = pixels.astype(kind)
    order = "<" if kind[0] == "<" else ">"
    channels = stored.shape[2] if stored.ndim == 3 else 1
    content = zlib.compress(stored.tobytes()) if deflated else stored.tobytes()
    bits, sample = stored.itemsize * 8, {"u": 1, "i": 2, "f": 3}[kind[1]]
    after = 8 + len(content)
    content += struct.pack(order + "HHH", bits, bits, bits)
    entries = [
        (256, 4, 1, stored.shape[1]),
        (257, 4, 1, stored.shape[0]),
        (258, 3, channels, bits if channels == 1 else after),
        (259, 3, 1, 8 if deflated else 1),
        (262, 3, 1, 1 if channels == 1 else 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, stored.shape[0]),
        (279, 4, 1, after - 8),
        (339, 3, 1, sample),
    ]
    table = struct.pack(order + "H", len(entries))
    for tag, size, number, value in entries:
        short = size == 3 and number == 1
        packed = struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        table += struct.pack(order + "HHI", tag, size, number) + packed
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(order + "HI", 42, 8 + len(content))
    path.write_bytes(start + content + table + struct.pack(order + "I", 0))
    return path


def pnm(path: Path, kind: str, greatest: int, pixels: NDArray[Any]) -> Path:
    head = f"{kind}\n{pixels.shape[1]} {pixels.shape[0]}\n{greatest}\n".encode()
    plain = kind in ("P2", "P3")
    body = " ".join(map(str, pixels.ravel())).encode() if plain else pixels.astype(">u2").tobytes()
    path.write_bytes(head + body)
    return path


def coloured(pixels: NDArray[Any], channels: int = 3) -> NDArray[Any]:
    """The same in every channel, opaque."""
    colour = np.repeat(pixels[..., None], channels, axis=2)
    if channels in (2, 4):
        colour[..., -1] = 65535
    return colour


STORED: dict[str, Callable[[Path], Path]] = {
    "png grey": lambda path: png(path, RAMP),
    "png grey alpha": lambda path: png(path, coloured(RAMP, 2)),
    "png rgb": lambda path: png(path, coloured(RAMP)),
    "png rgba": lambda path: png(path, coloured(RAMP, 4)),
    "tiff little": lambda path: tiff(path, RAMP, "<u2"),
    "tiff big": lambda path: tiff(path, RAMP, ">u2"),
    "tiff deflated": lambda path: tiff(path, RAMP, "<u2", deflated=True),
    "tiff signed": lambda path: tiff(path, RAMP, "<i2"),
    "tiff signed big": lambda path: tiff(path, RAMP, ">i2"),
    "tiff int32": lambda path: tiff(path, RAMP, "<i4"),
    "tiff uint32": lambda path: tiff(path, RAMP, "<u4"),
    "tiff rgb little": lambda path: tiff(path, coloured(RAMP), "<u2"),
    "tiff rgb big": lambda path: tiff(path, coloured(RAMP), ">u2"),
    "tiff rgb deflated": lambda path: tiff(path, coloured(RAMP), "<u2", deflated=True),
    "tiff rgb big deflated": lambda path: tiff(path, coloured(RAMP), ">u2", deflated=True),
    "pgm": lambda path: pnm(path, "P5", 65535, RAMP),
    "pgm plain": lambda path: pnm(path, "P2", 65535, RAMP),
    "ppm": lambda path: pnm(path, "P6", 65535, coloured(RAMP)),
}


@pytest.mark.parametrize("name", STORED)
def test_the_level_given_is_white_however_it_is_stored(tmp_path: Path, name: str) -> None:
    path = STORED[name](tmp_path / "x")
    assert read_photo(path, 4095)[:, 0].tolist() == [IN_8_BITS] * 3


@pytest.mark.parametrize("name", STORED)
def test_without_a_level_the_range_of_the_file_counts(tmp_path: Path, name: str) -> None:
    path = STORED[name](tmp_path / "x")
    difference = read_photo(path)[:, 0].long() - torch.tensor(RAMP // 257)
    assert difference.abs().max() <= 1  # of colour Pillow keeps the upper byte


@pytest.mark.parametrize("name", STORED)
def test_the_extent_of_an_image_is_found_however_it_is_stored(tmp_path: Path, name: str) -> None:
    suffix = {"t": ".tif", "pn": ".png", "pg": ".pgm", "pp": ".ppm"}
    path = tmp_path / f"x{next(s for start, s in suffix.items() if name.startswith(start))}"
    STORED[name](path)
    assert levels_module.extents([path]) == (Extent(str(path), 0, 4095),)


@pytest.mark.parametrize("greatest", [1023, 4095])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_a_pgm_that_states_its_range_is_read_over_that(
    tmp_path: Path, kind: str, greatest: int
) -> None:
    path = pnm(tmp_path / "x.pgm", kind, greatest, np.array([[0, greatest]]))
    assert read_photo(path, 4095)[0, 0].tolist() == read_photo(path)[0, 0].tolist() == [0, 255]
    assert levels_module.extents([path]) == ()


def test_levels_outside_of_the_range_become_black_and_white(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", np.array([[-1000, -1, 1024, 4096, 2**30]]), "<i4")
    assert read_photo(path, 1023)[0, 0].tolist() == [0, 0, 255, 255, 255]


def test_images_of_8_bits_are_read_as_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "x.png")
    assert torch.equal(read_photo(tmp_path / "x.png", 4095), read_photo(tmp_path / "x.png"))


def test_a_large_colour_image_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 5, 3))
    path = png(tmp_path / "x.png", pixels)
    monkeypatch.setattr("finetune.data.image_ops._STRIP_PIXELS", 20)
    expected = torch.tensor(pixels * 255 // 4095, dtype=torch.uint8).permute(2, 0, 1)
    assert torch.equal(read_photo(path, 4095), expected)


@pytest.mark.parametrize("first", [None, 1023, 4095])
def test_a_pgm_that_is_given_again_as_a_pillow_image_is_read_alike(
    tmp_path: Path, first: int | None
) -> None:
    path = pnm(tmp_path / "x.pgm", "P5", 4095, RAMP)
    with Image.open(path) as image:
        load_with_white(image, first)
        for again in (image, image.copy()):
            pixels = upright_rgb(again, load_with_white(again, 4095))
            assert torch.equal(pixels, read_photo(path, 4095))


def test_a_pgm_of_the_full_range_is_read_over_the_level_of_each_run(tmp_path: Path) -> None:
    path = pnm(tmp_path / "x.pgm", "P5", 65535, RAMP)
    with Image.open(path) as image:
        whites = [load_with_white(image, levels) for levels in (1023, 4095, None)]
    assert whites == [1023, 4095, 65535]


def test_a_pgm_that_the_caller_has_decoded_is_refused(tmp_path: Path) -> None:
    with Image.open(pnm(tmp_path / "x.pgm", "P5", 4095, RAMP)) as image:
        image.load()
        with pytest.raises(OSError, match="give its path"):
            load_with_white(image, 4095)
        assert load_with_white(image, None) == 65535


@pytest.mark.parametrize("name", [name for name in STORED if "rgb" in name or "alpha" in name])
def test_16_bit_colour_that_the_caller_has_decoded_is_refused(tmp_path: Path, name: str) -> None:
    with Image.open(STORED[name](tmp_path / "x")) as image:
        image.load()
        for decoded in (image, image.copy()):
            with pytest.raises(OSError, match="give its path"):
                load_with_white(decoded, 4095)
            assert load_with_white(decoded, None) == 65535


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm", "webp", "bmp"])
def test_a_dark_image_of_8_bits_is_read_as_often_as_it_is_given(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (2, 2), (9, 9, 9)).save(path)
    with Image.open(path) as image:
        for _ in range(2):
            load_with_white(image, 4095)
            assert torch.equal(upright_rgb(image), read_photo(path))


def test_an_image_of_8_bits_that_the_caller_made_is_read() -> None:
    assert load_with_white(Image.new("RGB", (2, 2), (1, 2, 16)), 4095) == 4095


# What auto means


@pytest.mark.parametrize(
    ("greatest", "levels"),
    [
        *((200, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (5000, 8191)),
        *((8191, 8191), (8192, 65535), (65535, 65535), (2**30, 65535)),
    ],
)
def test_auto_goes_by_the_brightest_image_of_the_set(greatest: int, levels: int) -> None:
    assert auto_levels([Extent("dark", 0, 10), Extent("bright", 0, greatest)]) == levels


def test_auto_says_what_it_became_and_how_to_state_it(tmp_path: Path) -> None:
    heard = Heard()
    paths = [png(tmp_path / f"{top}.png", np.array([[0, top]])) for top in (900, 4000)]
    assert settled_levels("auto", paths, heard) == 4095
    (said,) = heard.warned
    assert "data.levels: 4095" in said


def test_a_set_that_is_dark_but_for_some_is_said(tmp_path: Path) -> None:
    heard = Heard()
    paths = [png(tmp_path / f"{top}.png", np.array([[0, top]])) for top in (900, 4000, 60000)]
    assert settled_levels("auto", paths, heard) == 65535
    (said,) = heard.warned
    assert "2 have no level above 8,191" in said


@pytest.mark.parametrize(
    ("given", "top", "said"),
    [
        *((65535, 4000, "data.levels: 4095"), (1023, 4000, "data.levels: 4095")),
        *((4095, 4000, None), (255, 2**20, "levels from 0 to 65,535"), ("auto", 60000, None)),
    ],
)
def test_a_level_that_makes_the_set_dark_or_light_is_said(
    tmp_path: Path, given: Any, top: int, said: str | None
) -> None:
    heard = Heard()
    settled_levels(given, [tiff(tmp_path / "x.tif", np.array([[0, top]]), "<i4")], heard)
    assert len(heard.warned) == (said is not None)
    assert said is None or said in heard.warned[0]


def test_negative_levels_are_said(tmp_path: Path) -> None:
    heard = Heard()
    settled_levels("auto", [tiff(tmp_path / "x.tif", np.array([[-1024, 60000]]), "<i4")], heard)
    assert len(heard.warned) == 1
    assert "negative" in heard.warned[0]


def test_of_a_set_of_8_bits_nothing_is_said_or_settled(tmp_path: Path) -> None:
    heard = Heard()
    for name in ("a.png", "a.tif", "a.jpg", "a.ppm"):
        Image.new("RGB", (3, 3)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"broken")
    png(tmp_path / "cut.png", RAMP).write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    assert settled_levels("auto", sorted(tmp_path.iterdir()), heard) is None
    assert heard.warned == []


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_levels_of_a_number_of_bits_can_be_given(bits: int) -> None:
    assert DataConfig(root="x", levels=2**bits - 1).levels == 2**bits - 1


@pytest.mark.parametrize("given", [12, 0, -1, 4096, 65536, 4095.0, True, "4095", "full", None, []])
def test_any_other_level_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="4095"):
        DataConfig(root="x", levels=given)


# What goes by it


def draw(folder: Path, *, deep: bool, counts: dict[str, int] | None = None) -> Path:
    """Two classes of grey pictures; with ``deep`` of 12 bits in files of 16, with pixels that are
    those of 8 bits again once level 4095 is white."""
    rng = random.Random(0)
    for split, count in (counts or {"train": 9, "val": 5}).items():
        for label in range(2):
            for index in range(count):
                grey = np.full((40, 40), rng.randrange(60, 160), dtype=np.int64)
                grey[:, : 8 + index] = 255
                grey[10 * label : 10 * label + 8] = 30
                path = folder / split / f"class_{label}" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if deep:
                    png(path, -(-grey * 4095 // 255))
                else:
                    Image.fromarray(grey.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    return draw(tmp_path / "deep", deep=True)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return draw(tmp_path / "plain", deep=False)


@pytest.fixture
def deep_run(make_config: Make, deep: Path) -> str:
    """The folder of a run on 12 bits with the default of data.levels."""
    config = make_config(data={"root": str(deep)}, runtime={"precision": "float32"})
    train(config)
    return config.output_dir


@pytest.mark.parametrize("given", ["auto", 4095])
def test_training_on_12_bits_gives_the_figures_of_the_same_photos_in_8(
    make_config: Make, deep: Path, plain: Path, tmp_path: Path, given: Any
) -> None:
    heard = Heard()
    runtime = {"precision": "float32", "live_precision": "float32"}
    ours = make_config(data={"root": str(deep), "levels": given}, runtime=runtime)
    theirs = make_config(
        data={"root": str(plain)}, runtime=runtime, output_dir=str(tmp_path / "second")
    )
    assert train(ours, reporter=heard).val == train(theirs).val
    assert len([said for said in heard.warned if "data.levels" in said]) == (given == "auto")


def test_the_level_is_kept_in_the_checkpoint_and_in_the_runs_config(deep_run: str) -> None:
    _, metadata = load_checkpoint(Path(deep_run) / "best.pt")
    assert metadata.preprocessing.levels == 4095
    assert yaml.safe_load((Path(deep_run) / "config.yaml").read_text())["data"]["levels"] == 4095


def test_eval_goes_by_the_checkpoint(deep_run: str) -> None:
    figures = json.loads((Path(deep_run) / "summary.json").read_text())["val"]
    result = evaluate_checkpoint(Path(deep_run) / "best.pt")
    assert (result.top1, result.loss) == (figures["top1"], figures["loss"])


def test_predict_goes_by_the_checkpoint(deep_run: str, deep: Path, plain: Path) -> None:
    model = finetune.load(deep_run)
    name = Path("val") / "class_1" / "3.png"
    with Image.open(deep / name) as image:
        answers = model.predict([deep / name, plain / name, image])
    assert len({answer.probability for answer in answers}) == 1


def test_a_pillow_image_of_16_bit_colour_is_refused(deep_run: str, tmp_path: Path) -> None:
    path = png(tmp_path / "x.png", coloured(RAMP))
    model = finetune.load(deep_run)
    assert model.predict(path)
    with Image.open(path) as image, pytest.raises(DataError, match="path"):
        model.predict(image)


@pytest.mark.parametrize("top", [60000, 200])
def test_images_of_another_range_than_those_trained_on_are_said(
    deep_run: str, deep: Path, tmp_path: Path, top: int
) -> None:
    path = png(tmp_path / "other" / "class_0" / "x.png", np.array([[0, top]]))
    heard = [Heard() for _ in range(4)]
    checkpoint = Path(deep_run) / "best.pt"
    predict(deep_run, [str(path)], show=lambda *_: None, reporter=heard[0])
    compute(checkpoint, EvalOptions(data=str(tmp_path / "other")), reporter=heard[1])
    predict(deep_run, [str(deep)], show=lambda *_: None, reporter=heard[2])
    compute(checkpoint, EvalOptions(), reporter=heard[3])
    said = [sum("levels" in text for text in one.warned) for one in heard]
    assert said == [1, 1, 0, 0]


def test_show_batch_and_the_report_show_what_the_network_sees(
    make_config: Make, deep: Path, tmp_path: Path, deep_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    image = show_batch.image_of
    monkeypatch.setattr(show_batch, "image_of", lambda p: (shown.append(int(p.max())), image(p))[1])
    config = make_config(data={"root": str(deep)})
    show_batch.show_batch(config, tmp_path / "sheet.png", count=2)
    evaluated = compute(Path(deep_run) / "best.pt", EvalOptions(), reporter=SilentReporter())
    shown += [int(photo.max()) for photo in report._photos(evaluated, [0, 1], SilentReporter())]
    assert shown == [255] * 6


def test_kept_features_of_another_level_are_not_taken(
    make_config: Make, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    real = FrozenPrefix.forward

    def counted(self: FrozenPrefix, pixels: torch.Tensor) -> Any:
        passed.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(FrozenPrefix, "forward", counted)
    # Forms fixed, so that no timing runs the prefix.
    runtime = {"precision": "float32", "memory_format": "contiguous"}
    for number, (levels, computed) in enumerate([(4095, True), (4095, False), (8191, True)]):
        passed.clear()
        config = make_config(
            data={"root": str(deep), "levels": levels},
            output_dir=str(tmp_path / f"run{number}"),
            runtime=runtime,
            features={"cache": "disk"},
        )
        train(config)
        assert bool(passed) == computed


def test_a_resumed_run_keeps_its_level_without_looking_again(
    make_config: Make, deep: Path, deep_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels_module, "extents", None)
    more = make_config(
        data={"root": str(deep)}, runtime={"precision": "float32"}, train={"epochs": 3}
    )
    assert train(more, resume=True).epochs == 3
    _, metadata = load_checkpoint(Path(deep_run) / "last.pt")
    assert metadata.preprocessing.levels == 4095


def test_check_data_says_so_with_the_remedy(deep: Path, plain: Path) -> None:
    (found,) = [f for f in check_data(DataConfig(root=str(deep))).findings if f.kind == "levels"]
    assert found.level == "warning"
    assert "data.levels: 4095" in found.todo
    for data in (DataConfig(root=str(plain)), DataConfig(root=str(deep), levels=4095)):
        assert "levels" not in {finding.kind for finding in check_data(data).findings}


def test_an_exports_page_reads_the_photo_over_the_level(deep_run: str, deep: Path) -> None:
    export(deep_run, file_format="safetensors")
    folder = Path(deep_run) / "export" / "safetensors"
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    photo = deep / "val" / "class_1" / "3.png"
    (folder / "photo.png").write_bytes(photo.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.split()
    (ours,) = finetune.load(deep_run).predict(photo)
    assert label == ours.label
    assert float(probability) == pytest.approx(ours.probability, abs=0.01)
