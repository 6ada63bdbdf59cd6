"""Tests of ``finetune show-batch``: the sheet shows exactly the network's input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.messages import fails
from PIL import Image

from finetune.commands.show_batch import show_batch
from finetune.config.schema import Config
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.views import Views
from finetune.data.sources.open import find_train_val
from finetune.models.build import resolve_model
from finetune.report import contact_sheet
from finetune.report.contact_sheet import Section, can_write, draw_sheet, scale_of, stand_ins, wrap
from finetune.report.layout import plain
from finetune.report.show_batch import render_shown_batch

Make = Callable[..., Config]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Section]]:
    """The sections of every sheet that is drawn."""
    sheets: list[list[Section]] = []

    def draw(sections: list[Section]) -> Image.Image:
        sheets.append(sections)
        return draw_sheet(sections)

    monkeypatch.setattr("finetune.commands.show_batch.draw_sheet", draw)
    return sheets


def batch_of(config: Config, epoch: int) -> np.ndarray:
    """The first batch that training takes in an epoch, as (N, H, W, 3)."""
    batches = Batches(
        PhotoDataset(
            find_train_val(config.data, seed=config.seed).train,
            resolve_model(config.model).preprocessing,
            Views.of_training(config.augment, seed=config.seed),
        ),
        batch_size=config.data.batch_size,
        workers=0,
        device=torch.device("cpu"),
        shuffle=True,
    )
    return next(batches.epoch(epoch))[0].permute(0, 2, 3, 1).numpy()


def pictures(section: Section) -> np.ndarray:
    return np.stack([np.asarray(cell.image) for cell in section.cells])


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_pictures_are_the_pixels_of_that_epochs_first_batch(
    make_config: Make, tmp_path: Path, drawn: list[list[Section]], epoch: int
) -> None:
    config = make_config(augment={"policy": "trivial", "erasing": 0.5})
    show_batch(config, tmp_path / "x.png", epoch=epoch, count=8)
    assert np.array_equal(pictures(drawn[0][0]), batch_of(config, epoch))


def test_the_sheet_holds_every_picture_as_it_is(
    make_config: Make, tmp_path: Path, drawn: list[list[Section]]
) -> None:
    show_batch(make_config(), tmp_path / "x.png", count=3)
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    for section in drawn[0]:
        for cell in section.cells:
            enlarged = np.asarray(cell.image).repeat(4, axis=0).repeat(4, axis=1)
            windows = np.lib.stride_tricks.sliding_window_view(sheet, enlarged.shape)[:, ::16]
            corners = (windows[..., 0, 0, 0, :] == enlarged[0, 0]).all(-1)
            places = np.argwhere(corners)
            assert any(np.array_equal(windows[y, x, 0], enlarged) for y, x in places)


def test_validation_is_shown_as_evaluation_sees_it(
    make_config: Make, tmp_path: Path, drawn: list[list[Section]]
) -> None:
    plain = make_config(augment={"policy": "none"})
    strong = make_config(augment={"policy": "trivial", "erasing": 1.0, "mixup": 1.0})
    for config in (plain, strong):
        show_batch(config, tmp_path / "x.png", count=10)
    (_, one), (_, other) = drawn
    assert np.array_equal(pictures(one), pictures(other))
    assert [cell.lines for cell in one.cells] == [("class_0",)] * 5 + [("class_1",)] * 5


def test_pictures_stand_over_their_classes(make_config: Make, tmp_path: Path) -> None:
    shown = show_batch(make_config(), tmp_path / "x.png")
    assert len(shown.training) == 12
    assert all(list(image.classes) == [Path(image.path).parent.name] for image in shown.training)


def test_mixed_pictures_bear_both_names_with_their_shares(
    make_config: Make, tmp_path: Path, drawn: list[list[Section]]
) -> None:
    config = make_config(augment={"policy": "none", "mixup": 1.0})
    shown = show_batch(config, tmp_path / "x.png", count=8)
    mixed = [image for image in shown.training if len(image.classes) == 2]
    assert mixed
    assert all(sum(image.classes.values()) == pytest.approx(1) for image in mixed)
    lines = [cell.lines for cell in drawn[0][0].cells if len(cell.lines) == 2]
    assert len(lines) == len(mixed)
    assert all("% class_" in line for pair in lines for line in pair)
    plain = batch_of(make_config(augment={"policy": "none"}), 1)
    assert not np.array_equal(pictures(drawn[0][0]), plain)


def test_another_epoch_shows_other_pictures_and_the_same_one_the_same(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(augment={"policy": "crop_flip"})
    contents = []
    for epoch in (1, 1, 2):
        show_batch(config, tmp_path / "x.png", epoch=epoch)
        contents.append((tmp_path / "x.png").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_an_epoch_that_is_never_trained_is_refused(make_config: Make, tmp_path: Path) -> None:
    with fails("config.invalid_value", key="--epoch"):
        show_batch(make_config(), tmp_path / "x.png", epoch=3)


def test_more_pictures_than_there_are_show_all(make_config: Make, tmp_path: Path) -> None:
    shown = show_batch(make_config(), tmp_path / "x.png", count=200)
    assert (len(shown.training), len(shown.validation)) == (18, 10)


# The file


@pytest.mark.parametrize("content", [b"notes", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_sheet_is_never_replaced(
    make_config: Make, tmp_path: Path, content: bytes
) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(content)
    with fails("output.exists"):
        show_batch(make_config(), mine)
    assert mine.read_bytes() == content


def test_a_photo_is_never_replaced(make_config: Make, photos: Path) -> None:
    photo = photos / "train" / "class_0" / "0.png"
    with fails("output.exists"):
        show_batch(make_config(), photo)


def test_a_name_that_is_no_png_is_refused(make_config: Make, tmp_path: Path) -> None:
    with fails("config.plot_format", key="--output"):
        show_batch(make_config(), tmp_path / "x.jpg")


def test_an_absent_folder_is_refused_before_any_work(make_config: Make, tmp_path: Path) -> None:
    with fails("output.unwritable"):
        show_batch(make_config(data={"root": "absent"}), tmp_path / "no" / "x.png")


# Words


@pytest.mark.parametrize(
    "text", ["ants", "a_class_with_many_words", "x" * 300, "two words", "a-b/c_d " * 30, "…"]
)
def test_every_line_fits_and_what_fits_in_four_is_whole(text: str) -> None:
    lines = wrap(text, len, 16)
    assert all(len(line) <= 16 for line in lines)
    assert len(lines) <= 4
    if len(text) <= 40:
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_name_too_long_for_four_lines_keeps_its_ends() -> None:
    lines = wrap(f"first_{'x' * 300}_last", len, 16)
    assert lines[0].startswith("first")
    assert lines[-1].endswith("last")
    assert any("…" in line for line in lines)


def test_letters_that_the_font_lacks_are_known() -> None:
    assert can_write("plain_name 1-2")
    assert not can_write("樱花")


def test_a_name_that_cannot_be_written_has_a_stand_in_of_its_own() -> None:
    names = ["Ubergrosse", "Größe", "Übergröße", "樱花", "class 4", "梅"]
    assert stand_ins(names) == {
        "Größe": "Grosse",
        "Übergröße": "class 2",
        "樱花": "class 3",
        "梅": "class 5",
    }


def test_stand_ins_are_explained(make_config: Make, photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "class_1").rename(photos / split / "樱花")
    shown = show_batch(make_config(), tmp_path / "x.png")
    assert shown.stand_ins == {"class 1": "樱花"}
    assert "class 1 stands for 樱花" in plain(render_shown_batch(shown))


@pytest.mark.parametrize(
    ("side", "scale"), [(16, 8.0), (32, 4.0), (96, 2.0), (128, 1.0), (224, 1.0), (256, 1.0)]
)
def test_small_pictures_are_enlarged_by_whole_numbers(side: int, scale: float) -> None:
    assert scale_of(side) == scale


def test_large_pictures_are_made_smaller() -> None:
    assert scale_of(512) == 0.5


def test_a_sheet_of_one_picture_is_wide_enough_for_its_title() -> None:
    cell = contact_sheet.Cell(Image.new("RGB", (32, 32)), ("a",))
    sheet = draw_sheet([Section("A title", "some words", (cell,))])
    assert sheet.width >= 480
