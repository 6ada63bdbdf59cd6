"""Tests of the folders that ``predict --sort-into`` makes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.messages import fails

from finetune.core.reporter import SilentReporter
from finetune.report.sorted_folders import Sorter, folder_names
from finetune.results.evaluation import Prediction, SortedInto, Unreadable


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., SortedInto]:
    """Sorts images, given by path, class and whether that is unsure."""

    def make(
        answers: Sequence[tuple[str, str, bool]],
        names: Sequence[str] = ("rose", "tulip"),
        folder: Path = tmp_path / "sorted",
    ) -> SortedInto:
        sorter = Sorter(folder)
        for path, label, unsure in answers:
            file = tmp_path / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(path)
            sorter.add(names, Prediction(str(file), label, 0.5, unsure, ((label, 0.5),)))
        return sorter.write(SilentReporter())

    return make


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


ANSWERS = [("a/1.jpg", "rose", False), ("a/2.jpg", "tulip", False), ("a/3.jpg", "rose", True)]


def test_images_are_linked_by_class_and_the_unsure_apart(
    make: Callable[..., SortedInto], tmp_path: Path
) -> None:
    made = make(ANSWERS)
    expected = {"rose/1.jpg": "a/1.jpg", "tulip/2.jpg": "a/2.jpg", "unsure/3.jpg": "a/3.jpg"}
    assert content(tmp_path / "sorted") == expected
    assert made.links
    assert made.counts == {"rose": 1, "tulip": 1, "unsure": 1}
    link = tmp_path / "sorted" / "rose" / "1.jpg"
    assert link.is_symlink()
    assert link.readlink().is_absolute()
    (tmp_path / "sorted").rename(tmp_path / "moved")
    assert content(tmp_path / "moved") == expected


def test_images_unlike_the_training_photos_are_apart(tmp_path: Path) -> None:
    file = tmp_path / "ant.jpg"
    file.write_bytes(b"ant")
    sorter = Sorter(tmp_path / "sorted")
    answer = Prediction(str(file), "rose", 0.5, True, (("rose", 0.5),), unlike=True, distance=2.0)
    sorter.add(["rose", "unlike"], answer)
    assert sorter.write(SilentReporter()).counts == {"unlike": 1}
    assert (tmp_path / "sorted/unlike/ant.jpg").is_symlink()


def test_equal_names_get_numbers_and_an_image_is_placed_once(
    make: Callable[..., SortedInto], tmp_path: Path
) -> None:
    paths = ["a/1.jpg", "b/1.jpg", "a/1.jpg", "c/1.JPG", "a/1-2.jpg"]
    make([(path, "rose", False) for path in paths])
    assert content(tmp_path / "sorted") == {
        "rose/1.jpg": "a/1.jpg",
        "rose/1-2.jpg": "b/1.jpg",
        "rose/1-3.JPG": "c/1.JPG",
        "rose/1-2-2.jpg": "a/1-2.jpg",
    }


def test_where_there_are_no_links_images_are_copied(
    make: Callable[..., SortedInto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    made = make(ANSWERS)
    assert not made.links
    (tmp_path / "a").rename(tmp_path / "gone")
    assert len(content(tmp_path / "sorted")) == 3


def test_after_an_error_nothing_is_left(
    make: Callable[..., SortedInto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.symlink_to

    def full(self: Path, target: Path) -> None:
        if self.name == "2.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        link(self, target)

    monkeypatch.setattr(Path, "symlink_to", full)
    with fails("output.unwritable", path="sorted"):
        make(ANSWERS)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_a_new_or_empty_folder_is_used(
    make: Callable[..., SortedInto], tmp_path: Path
) -> None:
    (tmp_path / "sorted").mkdir()
    make(ANSWERS)
    with fails("output.exists", key="--sort-into"):
        Sorter(tmp_path / "sorted")
    (tmp_path / "file").touch()
    with fails("output.not_a_folder", key="--sort-into"):
        Sorter(tmp_path / "file")
    with fails("output.unwritable"):
        Sorter(tmp_path / "nowhere" / "sorted")


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path / "sorted")
    sorter.add(("rose",), Unreadable("x.jpg", "it is cut off"))
    assert sorter.write(SilentReporter()).counts == {}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("rose", "rose"),
        ("cat/dog", "cat_dog"),
        ("..", "_"),
        (".hidden", "_.hidden"),
        ("what?", "what_"),
        ("end. ", "end"),
        ("con", "con_"),
        ("", "_"),
        ("薔薇", "薔薇"),
        ("new\nline", "new_line"),
    ],
)
def test_a_class_name_becomes_a_valid_folder_name(name: str, folder: str) -> None:
    assert folder_names([name]) == {name: folder}


def test_folders_of_different_classes_differ() -> None:
    found = folder_names(["a/b", "a_b", "A_B", "unsure", "x" * 300, "x" * 301], taken={"unsure"})
    assert found["a_b"] in {"a_b", "a_b-2"}
    assert found["unsure"] == "unsure-2"
    assert len({folder.casefold() for folder in found.values()}) == len(found)
    assert max(map(len, found.values())) < 255


def test_a_class_that_cannot_be_a_folder_is_reported(make: Callable[..., SortedInto]) -> None:
    made = make([("a/1.jpg", "a/b", False)], names=("a/b", "rose"))
    assert made.counts == {"a_b": 1}
    assert made.renamed == {"a_b": "a/b"}
