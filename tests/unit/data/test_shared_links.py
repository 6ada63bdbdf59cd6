"""Tests of links that put photos into two classes or both splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.broken_files import save
from helpers.messages import fails

from finetune.config.data import DataConfig
from finetune.data.images import TrainVal
from finetune.data.sources.open import find_train_val


def find(root: Path) -> TrainVal:
    """What training would read."""
    return find_train_val(DataConfig(root=str(root)), seed=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("train/daisy", "train/rose", "val/daisy", "val/rose"):
        for index in range(3):
            save(tmp_path / folder / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("link", ["train/daisy/more", "train/tulip"])
def test_a_folder_linked_into_two_classes_is_warned_about(root: Path, link: str) -> None:
    (root / link).symlink_to(root / "train/rose")
    (warning,) = find(root / "train").warnings
    assert "3 photos also read, by links, as another class" in warning
    assert str(root / link / "0.png") in warning
    assert str(root / "train/rose/0.png") in warning


def test_a_folder_linked_into_both_splits_is_refused(root: Path) -> None:
    (root / "val/daisy/more").symlink_to("../../train/daisy")
    with fails("data.shared_folder"):
        find(root)


def test_a_val_folder_that_is_the_train_folder_is_refused(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    (root / "val").symlink_to("train")
    with fails("data.shared_folder"):
        find(root)


@pytest.mark.parametrize("link", ["train/daisy/x.png", "val/rose/x.png"])
def test_a_photo_linked_into_another_class_or_split_is_warned_about(root: Path, link: str) -> None:
    (root / link).symlink_to(root / "train/rose/0.png")
    (warning,) = find(root).warnings
    assert "1 photo also read, by links, as another class or in the other split" in warning


def test_links_to_photos_elsewhere_are_no_mistake(root: Path) -> None:
    (root / "val/rose").rename(root / "elsewhere")
    (root / "val/rose").symlink_to(root / "elsewhere")
    save(root / "other/a.png")
    (root / "train/rose/a.png").symlink_to(root / "other/a.png")
    assert find(root).warnings == ()
