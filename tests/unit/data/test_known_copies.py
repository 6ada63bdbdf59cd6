"""Tests of the copies that are known before a run, without decoding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.broken_files import picture, save

from finetune.commands.check_data import check_data
from finetune.config.data import DataConfig
from finetune.core.reporter import SilentReporter
from finetune.data.checks import known_copies
from finetune.data.checks.known_copies import KnownCopies
from finetune.data.checks.preflight import copies_of_training
from finetune.data.images import Images


def images_in(folder: Path) -> Images:
    """Every file below the folders of two classes."""
    paths = [path for name in ("a", "b") for path in sorted((folder / name).iterdir())]
    labels = tuple("ab".index(path.parent.name) for path in paths)
    return Images(tuple(paths), labels, ("a", "b"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes; all photos differ."""
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate("ab"):
            for index in range(3):
                noise = picture(100 * number + 10 * label + index)
                save(tmp_path / split / name / f"{index}.png", noise)
    return tmp_path


def found(folder: Path) -> KnownCopies:
    return copies_of_training(
        images_in(folder / "train"), images_in(folder / "val"), SilentReporter()
    )


def test_different_photos_are_no_copies_and_are_not_read_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_copies, "sha256_of", lambda _: pytest.fail("was read"))
    assert found(folder) == KnownCopies((), (), 0, all_decoded=False)


def test_a_copied_file_is_in_both_splits(folder: Path) -> None:
    shutil.copy(folder / "train/b/1.png", folder / "val/b/1.png")
    assert found(folder) == KnownCopies((4,), (), 0, all_decoded=False)


def test_a_copy_under_another_label_is_in_two_classes(folder: Path) -> None:
    shutil.copy(folder / "train/a/1.png", folder / "train/b/1.png")
    assert found(folder) == KnownCopies((), (), 1, all_decoded=False)
    shutil.copy(folder / "train/a/0.png", folder / "val/b/0.png")
    assert found(folder) == KnownCopies((3,), (), 2, all_decoded=False)


def test_files_that_differ_in_the_middle_are_no_copies(folder: Path) -> None:
    image = picture(1, size=(200, 200))
    save(folder / "train/a/0.bmp", image)
    image.putpixel((100, 100), (1, 2, 3))
    save(folder / "val/a/0.bmp", image)
    assert found(folder).leaked == ()


def test_after_check_data_equal_pixels_and_alike_photos_are_known(folder: Path) -> None:
    for index in range(3):
        save(folder / f"train/a/{index}.png", picture(index, size=(96, 96)))
    save(folder / "val/a/0.bmp", picture(0, size=(96, 96)))
    save(folder / "val/a/1.png", picture(1, size=(96, 96)).resize((120, 120)))
    check_data(DataConfig(root=str(folder)), workers=1)
    copies = found(folder)
    names = [path.name for path in images_in(folder / "val").paths]
    assert [names[at] for at in copies.leaked] == ["0.bmp"]
    assert [names[at] for at in copies.alike] == ["1.png"]
    assert copies.all_decoded
