"""Tests of the demo dataset: same images everywhere, drawn once, never incomplete."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from helpers.messages import fails
from PIL import Image

from finetune.commands import sample as sample_command
from finetune.commands.sample import sample
from finetune.data.sources import demo
from finetune.data.sources.demo_drawing import FIGURES, IMAGE_SIZE, draw_picture


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of its own, and a set small enough to draw in every test."""
    monkeypatch.setattr(demo, "user_cache", lambda *_, **__: tmp_path / "finetune")
    monkeypatch.setattr(demo, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(demo, "VAL_PER_CLASS", 1)
    return tmp_path / "finetune"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")
    }


def draw_small(folder: Path, *, seed: int = 0, train_per_class: int = 2) -> dict[str, bytes]:
    demo.draw_demo_set(folder, seed=seed, train_per_class=train_per_class, val_per_class=1)
    return contents(folder)


def test_two_draws_of_one_seed_are_equal_byte_for_byte(tmp_path: Path) -> None:
    assert draw_small(tmp_path / "first") == draw_small(tmp_path / "second")


def test_another_seed_changes_every_picture(tmp_path: Path) -> None:
    first, second = draw_small(tmp_path / "0"), draw_small(tmp_path / "1", seed=1)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_a_picture_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    few, more = draw_small(tmp_path / "2"), draw_small(tmp_path / "3", train_per_class=3)
    assert few.items() < more.items()


def test_no_picture_stands_twice(tmp_path: Path) -> None:
    pictures = draw_small(tmp_path, train_per_class=3)
    assert len(set(pictures.values())) == len(pictures) == len(FIGURES) * 4


def test_train_and_val_hold_the_same_class_folders(tmp_path: Path) -> None:
    draw_small(tmp_path)
    for split in ("train", "val"):
        assert sorted(path.name for path in (tmp_path / split).iterdir()) == sorted(FIGURES)


@pytest.mark.parametrize("class_name", sorted(FIGURES))
def test_pictures_are_rgb_of_the_stated_size(class_name: str) -> None:
    picture = draw_picture(class_name, Random(0))
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname != "Linux", reason="XDG is Linux's")
def test_demo_root_lies_in_the_xdg_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "TRAIN_PER_CLASS", 1)
    monkeypatch.setattr(demo, "VAL_PER_CLASS", 1)
    root = demo.demo_root()
    assert root == tmp_path / "finetune" / f"demo-{demo.VERSION}"
    assert len(contents(root)) == len(FIGURES) * 2


def test_demo_root_draws_once_and_leaves_nothing_beside_it(
    small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = demo.demo_root()
    monkeypatch.setattr(demo, "draw_demo_set", lambda *_, **__: pytest.fail("drawn again"))
    assert demo.demo_root() == root
    assert list(small_cache.iterdir()) == [root]


def test_demo_root_removes_a_killed_process_folder_but_not_a_young_one(small_cache: Path) -> None:
    name = f"demo-{demo.VERSION}"
    stale, young = small_cache / f"{name}.stale.tmp", small_cache / f"{name}.young.tmp"
    for folder in (stale, young):
        (folder / "drawing" / "train").mkdir(parents=True)
    os.utime(stale, (0, 0))
    root = demo.demo_root()
    assert sorted(small_cache.iterdir()) == [root, young]


def test_demo_root_completes_a_set_that_lost_a_picture(small_cache: Path) -> None:
    root = demo.demo_root()
    whole = contents(root)
    (root / "train" / "fish" / "000.png").unlink()
    assert contents(demo.demo_root()) == whole
    assert list(small_cache.iterdir()) == [root]


def test_demo_root_uses_the_set_of_a_faster_process(
    small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_cache / f"demo-{demo.VERSION}"
    draw = demo.draw_demo_set

    def draw_while_another_finishes(folder: Path, **counts: int) -> None:
        draw(folder, seed=1, **counts)
        draw(root, seed=2, **counts)

    monkeypatch.setattr(demo, "draw_demo_set", draw_while_another_finishes)
    demo.demo_root()
    monkeypatch.undo()
    expected = draw_small(small_cache / "expected", seed=2)
    assert contents(root) == expected
    assert not list(small_cache.glob("*.tmp"))


def test_a_failed_drawing_leaves_nothing(
    small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_half_way(folder: Path, **_: int) -> None:
        (folder / "train").mkdir()
        raise OSError("no space left on device")

    monkeypatch.setattr(demo, "draw_demo_set", fail_half_way)
    with pytest.raises(OSError, match="no space left"):
        demo.demo_root()
    assert list(small_cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_oserror(small_cache: Path) -> None:
    small_cache.write_text("a file where the folder should be")
    with pytest.raises(OSError):
        demo.demo_root()


def test_a_sample_is_a_data_set_of_three_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_command, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(sample_command, "VAL_PER_CLASS", 1)
    result = sample(tmp_path / "new" / "my photos")
    places = [path.relative_to(result.folder) for path in Path(result.folder).rglob("*.png")]
    splits = [path.parts[0] for path in places]
    counts = tuple(splits.count(split) for split in ("train", "val", "test"))
    assert counts == (16, 8, 8) == (result.num_train, result.num_val, result.num_test)
    assert result.next[2] == "finetune train 'my photos.yaml'"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["my photos"]


def test_a_sample_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with fails("output.exists"):
        sample(tmp_path / "full")
    with fails("output.exists"):
        sample(tmp_path / "full" / "notes.txt")
