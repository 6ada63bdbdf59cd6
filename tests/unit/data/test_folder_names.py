"""Tests of ambiguous folder names: splits or classes, and similar class names."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.messages import fails
from helpers.photo_folders import E_ACUTE, E_ACUTE_NFD, find, pictures, put, refusal, split_of

from finetune.commands.check_data import check_data
from finetune.config.schema import DataConfig
from finetune.core.reporter import SilentReporter
from finetune.data.checks.structure import structure
from finetune.data.checks.summary import summarize_dataset
from finetune.data.checks.survey import Survey, survey
from finetune.data.sources.open import find_split


def surveyed(root: Path) -> Survey:
    """What check-data reports about folders and tables."""
    return survey(DataConfig(root=str(root)), seed=0)


def kinds(root: Path) -> list[str]:
    """The kinds of what check-data finds wrong with splits and classes."""
    return [finding.kind for finding in structure(surveyed(root))]


# Splits that may be classes


@pytest.mark.parametrize(
    "name", ["test", "Testing", "train", "training", "val", "valid", "validation", "DEV"]
)
def test_photos_directly_in_a_folder_named_as_a_split_are_refused(
    tmp_path: Path, name: str
) -> None:
    error = refusal(put(tmp_path, *pictures(name, "control", "placebo")))
    assert error.kind == "data.split_or_class"
    assert str(tmp_path / name / "control") in str(error)


@pytest.mark.parametrize(
    ("folders", "unclear"),
    [
        (["valid", "invalid"], "valid/"),
        (["train", "test"], "test/, train/"),
        (["dev", "val", "prod"], "dev/, val/"),  # two names of one split
        (["test", "control/monday", "placebo/monday"], "test/"),
        (["control", "placebo", "test", "test/monday"], "test/"),
        (["control", "placebo", "test/monday", "test/tuesday"], "test/"),
        (["car", "bus", "train/s1", "train/s2"], "train/"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_named(
    tmp_path: Path, folders: list[str], unclear: str
) -> None:
    assert refusal(put(tmp_path, *pictures(*folders))).kind == "data.split_or_class"


def test_photos_in_other_formats_make_a_split_unclear_as_well(tmp_path: Path) -> None:
    put(tmp_path, *pictures("control", "placebo"), "test/1.heic")
    assert refusal(tmp_path).kind == "data.split_or_class"


def test_photos_without_an_ending_make_a_split_unclear_as_well(tmp_path: Path) -> None:
    put(tmp_path, *pictures("control", "placebo"), *(f"test/{index}" for index in range(6)))
    assert refusal(tmp_path).kind == "data.split_or_class"


@pytest.mark.parametrize("file", ["", "labels.txt"])
def test_a_folder_named_as_a_split_that_holds_no_photos_is_said(tmp_path: Path, file: str) -> None:
    put(tmp_path, *pictures("control", "placebo"))
    (tmp_path / "test").mkdir()
    if file:
        put(tmp_path, f"test/{file}")
    assert "that of a split" in find(tmp_path).notes[0]
    assert "test/" in find(tmp_path).notes[0]


def test_the_way_out_is_a_folder_that_is_free(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train", "car", "plane"))
    assert refusal(tmp_path).kind == "data.split_or_class"


def test_both_ways_out_lead_out(tmp_path: Path) -> None:
    put(tmp_path / "one", *pictures("train/control", "train/placebo", "train/test"))
    assert find(tmp_path / "one").train.class_names == ("control", "placebo", "test")
    put(tmp_path / "two", *pictures("control", "placebo", "test/control", "test/placebo"))
    assert find(tmp_path / "two").train.class_names == ("control", "placebo")


def test_check_data_and_init_refuse_in_the_same_words(tmp_path: Path) -> None:
    put(tmp_path, *pictures("control", "placebo", "test"))
    with fails("data.split_or_class"):
        check_data(DataConfig(root=str(tmp_path)), workers=0)
    with fails("data.split_or_class"):
        summarize_dataset(DataConfig(root=str(tmp_path)), SilentReporter())


def test_other_data_is_refused_by_its_option(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", "test"))
    with fails("data.split_or_class"):
        split_of(tmp_path, "val", data=tmp_path)


def test_a_class_of_the_network_is_no_split(tmp_path: Path) -> None:
    put(tmp_path, *pictures("control", "test"))
    images = find_split(
        DataConfig(root=str(tmp_path)),
        "val",
        class_names=("control", "test"),
        seed=0,
        root=str(tmp_path),
    )
    assert set(images.labels) == {0, 1}


def test_unsorted_test_photos_beside_a_train_folder_are_said(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "test"))
    assert "contains photos but no class folders: test/" in find(tmp_path).notes[0]
    with fails("data.no_class_folders", path="test"):
        split_of(tmp_path, "test")


def test_unsorted_validation_photos_are_not_replaced_by_held_out_ones(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val"))
    assert refusal(tmp_path).kind == "data.no_class_folders"
    assert kinds(tmp_path) == ["refused"]


# Classes under several names


@pytest.mark.parametrize(
    ("one", "other"),
    [("daisy", "Daisy"), ("daisy", "daisy "), ("tea rose", " Tea  Rose"), ("É", "é")],
)
@pytest.mark.parametrize("below", ["", "train/"])
def test_class_folders_that_differ_by_case_or_spaces_are_refused(
    tmp_path: Path, one: str, other: str, below: str
) -> None:
    put(tmp_path, *pictures(f"{below}rose", f"{below}x{one}", f"{below}x{other}"))
    if "x " in f"x{other}":
        (tmp_path / below / f"x{other}").rename(tmp_path / below / f"{other}x")
        (tmp_path / below / f"x{one}").rename(tmp_path / below / f"{one}x")
    assert refusal(tmp_path).kind == "data.similar_class_names"
    assert "alike_classes" in kinds(tmp_path)


def test_two_unicode_forms_of_one_name_are_a_finding(tmp_path: Path) -> None:
    put(tmp_path, *pictures(E_ACUTE, E_ACUTE_NFD, "cats"))
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes both forms for one name")
    assert "alike_classes" in kinds(tmp_path)


def test_labels_of_a_table_that_differ_by_case_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures("a", "b", "c"))
    labels = {"a": "daisy", "b": "Daisy", "c": "rose"}
    rows = [f"{name},{labels[name[0]]}" for name in pictures("a", "b", "c")]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert refusal(tmp_path / "t.csv").kind == "data.similar_class_names"
    (finding,) = structure(surveyed(tmp_path / "t.csv"))
    assert finding.examples == ("'Daisy' and 'daisy'",)


def test_labels_of_a_table_are_one_class_in_both_unicode_forms_and_with_spaces(
    tmp_path: Path,
) -> None:
    put(tmp_path, *pictures("a", "b", "c", "d"))
    labels = {"a": E_ACUTE, "b": E_ACUTE_NFD, "c": f" {E_ACUTE} ", "d": "rose"}
    rows = [f"{name},{labels[name[0]]}" for name in pictures("a", "b", "c", "d")]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert find(tmp_path / "t.csv").train.class_names == ("rose", E_ACUTE)


def test_letters_are_told_apart_by_their_case(tmp_path: Path) -> None:
    put(tmp_path, *pictures("a", "A", "b"))
    assert find(tmp_path).train.class_names == ("A", "a", "b")
    assert kinds(tmp_path) == []


# Folders of the system

SYSTEM = ("lost+found", "$RECYCLE.BIN", "@eaDir", "__MACOSX", "System Volume Information")
SYSTEM += ("#recycle", ".Trash-1000", ".ipynb_checkpoints", "FOUND.001", "~snapshot")
SYSTEM += ("Network Trash Folder", "Temporary Items", "RECYCLED")


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("below", ["", "train/", "cats/", "train/cats/", "train/cats/deep/"])
def test_folders_of_the_system_are_skipped_and_said(tmp_path: Path, name: str, below: str) -> None:
    above = "train/" if below.startswith("train/") else ""
    put(tmp_path, *pictures(f"{above}cats", f"{above}dogs"))
    put(tmp_path, *pictures(f"{below}{name}/cats"))
    found = find(tmp_path)
    assert found.train.class_names == ("cats", "dogs")
    assert len(found.train) + len(found.val) == 10
    assert any(f"{below}{name}" in note for note in found.notes)
    seen = surveyed(tmp_path)
    assert len(seen.paths) == 10
    assert str(tmp_path / below / name) in seen.system


def test_what_is_recycled_may_be_a_class(tmp_path: Path) -> None:
    put(tmp_path, *pictures("found", "new", "recycled"))
    assert find(tmp_path).train.class_names == ("found", "new", "recycled")


def test_folders_of_the_system_beside_the_splits_are_said(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "__MACOSX/train/cats", "lost+found"))
    notes = " ".join(find(tmp_path).notes)
    assert "2 folders of the system or of a tool" in notes
    assert "no split" not in notes


def test_check_data_leaves_a_path_as_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos", *pictures("train/cats", "train/dogs", "val"))
    monkeypatch.chdir(tmp_path)
    (finding,) = structure(surveyed(Path("photos")))
    assert finding.why.startswith("photos/val: ")
