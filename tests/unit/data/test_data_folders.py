"""Tests of image folders: found images, splits, classes and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers.messages import fails
from helpers.photo_folders import E_ACUTE, E_ACUTE_NFD, find, pictures, put, refusal, split_of
from PIL import Image

from finetune.commands.dry_run import dry_run
from finetune.config.schema import Config, DataConfig
from finetune.data.images import Images
from finetune.data.sources.open import find_split, find_train_val
from finetune.data.splits.holdout import stratified_split


def names(images: Images, root: Path) -> list[str]:
    """Paths of the images below ``root``."""
    return [path.relative_to(root).as_posix() for path in images.paths]


def classes_of(paths: Iterable[str]) -> Counter[str]:
    """How many of these paths each class folder holds."""
    return Counter(path.split("/")[-2] for path in paths)


# Splits and classes


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("train", "Dev"),
        ("Train", "VAL"),
        ("TRAINING", "Validation"),
    ],
)
def test_split_folders_go_by_several_names_in_any_case(
    tmp_path: Path, train: str, val: str
) -> None:
    put(tmp_path, *pictures(f"{train}/cats", f"{train}/dogs", count=3))
    put(tmp_path, *pictures(f"{val}/cats", f"{val}/dogs", count=1))
    found = find(tmp_path)
    assert (len(found.train), len(found.val)) == (6, 2)


def test_a_val_folder_means_that_nothing_is_held_out(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs"))
    assert find(tmp_path).notes == ()


def test_classes_are_ordered_by_code_point(tmp_path: Path) -> None:
    put(tmp_path, *pictures("b", "Zebra", "a10", "a2", count=2))
    assert find(tmp_path).train.class_names == ("Zebra", "a10", "a2", "b")


def test_classes_are_ordered_after_nfc(tmp_path: Path) -> None:
    # Decomposed, the first letter is a plain e, which would come before z.
    put(tmp_path, *pictures(f"{E_ACUTE_NFD}clair", "zebra", count=2))
    assert find(tmp_path).train.class_names == ("zebra", f"{E_ACUTE}clair")


def test_labels_index_the_class_names(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/dogs", "train/cats", "val/cats", "val/dogs", count=2))
    train = find(tmp_path).train
    assert [train.class_names[label] for label in train.labels] == [
        path.parent.name for path in train.paths
    ]


def test_other_splits_are_matched_by_name_not_by_position(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/a", "train/b", "train/c", "val/b", "val/c", count=2))
    val = find(tmp_path).val
    assert val.class_names == ("a", "b", "c")
    assert val.labels == (1, 1, 2, 2)


def test_other_splits_are_matched_across_unicode_forms(tmp_path: Path) -> None:
    put(tmp_path, *pictures(f"train/{E_ACUTE}", "train/a", f"val/{E_ACUTE_NFD}", count=2))
    assert find(tmp_path).val.labels == (1, 1)


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", ".ipynb_checkpoints"))
    assert find(tmp_path).train.class_names == ("cats", "dogs")


def test_hidden_files_and_folders_within_a_class_are_not_read(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))
    put(tmp_path, "train/cats/.thumb.png", "train/cats/.cache/1.png")
    assert len(find(tmp_path).train) == 2


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))
    put(tmp_path, "train/cats/2019/summer/9.png")
    train = find(tmp_path).train
    at = names(train, tmp_path).index("train/cats/2019/summer/9.png")
    assert train.class_names[train.labels[at]] == "cats"


def test_suffixes_are_recognised_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))
    put(tmp_path, "train/cats/IMG.JPG", "train/cats/scan.Tiff")
    assert len(find(tmp_path).train) == 4


def test_a_file_named_jfif_is_read(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=2), "cats/x.JFIF")
    found = find(tmp_path)
    assert len(found.train) + len(found.val) == 5


def test_a_stray_file_in_a_class_is_skipped_and_noted(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))
    put(tmp_path, "train/cats/notes.txt")
    found = find(tmp_path)
    assert "train/cats/notes.txt" not in names(found.train, tmp_path)
    assert found.notes == (f"{tmp_path}: skipped 1 that are not images: train/cats/notes.txt",)


@pytest.mark.parametrize("folder", ["", "train/", "val/"])
def test_photos_directly_in_a_folder_of_classes_are_warned_about(
    tmp_path: Path, folder: str
) -> None:
    classes = [f"{above}{name}" for above in {folder, "train/" if folder else ""} for name in "ab"]
    put(tmp_path, *pictures(*classes), *(f"{folder}{index}.jpg" for index in range(6)))
    found = find(tmp_path)
    assert any(f"{tmp_path / folder} directly contains 6 photos" in said for said in found.warnings)
    assert not any("no images" in note for note in found.notes)


def test_a_note_on_many_stray_files_shows_three(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs"), *(f"cats/{index}.txt" for index in range(5)))
    note = find(tmp_path).notes[-1]
    assert "skipped 5" in note
    assert note.count(".txt") == 3
    assert note.endswith("and 2 more")


def test_images_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, *reversed(pictures("train/cats", "train/dogs", "val/cats", "val/dogs")))
    assert names(find(tmp_path).train, tmp_path) == pictures("train/cats", "train/dogs")


# Links


def linked(path: Path, to: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to, target_is_directory=True)
    return path


def split_sets(root: Path) -> Path:
    return put(root, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))


def test_a_linked_folder_in_a_class_is_read(tmp_path: Path) -> None:
    root = split_sets(tmp_path / "data")
    put(tmp_path, *pictures("elsewhere/deep", count=3))
    linked(root / "train" / "cats" / "more", tmp_path / "elsewhere")
    found = find(root)
    assert names(found.train, root)[:4] == [
        "train/cats/0.png",
        *pictures("train/cats/more/deep", count=3),
    ]
    assert found.train.labels == (0, 0, 0, 0, 1)
    assert found.warnings == ()


def test_a_class_that_holds_only_a_linked_folder_is_read(tmp_path: Path) -> None:
    put(tmp_path, *pictures("data/cats", "elsewhere"))
    linked(tmp_path / "data" / "dogs" / "photos", tmp_path / "elsewhere")
    found = find(tmp_path / "data")
    assert (len(found.train), len(found.val)) == (8, 2)


@pytest.mark.parametrize("to", ["cats", ".", "..", "../..", "../../..", "cats/inner", "again"])
def test_a_link_that_leads_back_adds_no_photo_and_is_said(tmp_path: Path, to: str) -> None:
    root = split_sets(tmp_path / "data")
    put(root, "train/cats/inner/1.png")
    cats = root / "train" / "cats"
    linked(cats / "again", cats.parent / to if to in ("cats", "cats/inner") else Path(to))
    (warning,) = find(root).warnings
    assert "again" in warning
    assert names(find(root).train, root) == [
        "train/cats/0.png",
        "train/cats/inner/1.png",
        "train/dogs/0.png",
    ]


def test_linked_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    root = split_sets(tmp_path / "data")
    put(tmp_path, "a/1.png", "b/2.png")
    linked(tmp_path / "a" / "b", tmp_path / "b")
    linked(tmp_path / "b" / "a", tmp_path / "a")
    linked(root / "train" / "cats" / "a", tmp_path / "a")
    linked(root / "train" / "cats" / "b", tmp_path / "b")
    assert [path.name for path in find(root).train.paths] == ["0.png", "1.png", "2.png", "0.png"]


def test_a_linked_class_that_links_to_its_root_brings_in_no_other_class(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *pictures("dogs", count=2))
    put(tmp_path, *pictures("cats", count=2))
    linked(root / "cats", tmp_path / "cats")
    linked(tmp_path / "cats" / "up", root)
    found = find(root, val_fraction=0.5)
    assert (len(found.train), len(found.val)) == (2, 2)


def test_a_dangling_link_in_a_class_is_said(tmp_path: Path) -> None:
    root = split_sets(tmp_path)
    linked(root / "train" / "cats" / "more", tmp_path / "nowhere")
    (warning,) = find(root).warnings
    assert "train/cats/more" in warning


@pytest.mark.parametrize("name", ["train/emus", "val", "emus"])
def test_a_class_or_split_that_is_a_dangling_link_is_refused(tmp_path: Path, name: str) -> None:
    root = put(tmp_path, *pictures("train/cats", "train/dogs"))
    link = linked(root / name, tmp_path / "nowhere")
    error = refusal(root)
    assert (error.kind, error.path) == ("data.broken_link", str(link))


# Photos with names of other files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", ["x", "x.jpe", "x.JPG_large", "x.dat"])
def test_a_photo_with_another_ending_is_said(tmp_path: Path, name: str, kind: str) -> None:
    root = split_sets(tmp_path)
    Image.new("RGB", (2, 2)).save(root / "train" / "cats" / name, kind)
    put(root, "train/cats/notes.txt")
    found = find(root)
    (warning,) = found.warnings
    assert f"train/cats/{name}" in warning
    assert found.notes == (f"{root}: skipped 1 that are not images: train/cats/notes.txt",)


def test_every_photo_with_another_ending_is_counted(tmp_path: Path) -> None:
    root = put(split_sets(tmp_path), *(f"train/cats/{i}.jpg_large" for i in range(50)))
    (warning,) = find(root).warnings
    assert warning.startswith(f"{root}: 50 files are photos by content")


@pytest.mark.parametrize("others", [(), ("dogs/1.png",)])
def test_classes_of_photos_with_other_endings_say_so(tmp_path: Path, others: tuple[str]) -> None:
    put(tmp_path, "cats/a.jpe", "cats/b", "dogs/a.jpe", *others)
    assert refusal(tmp_path).kind == ("data.empty_class" if others else "data.no_images")


# What is refused, with the path


@pytest.mark.parametrize("below", ["", "train/"])
def test_one_class_is_refused(tmp_path: Path, below: str) -> None:
    error = refusal(put(tmp_path, *pictures(f"{below}cats")))
    assert error.kind == "data.one_class"
    assert str(error).startswith(str(tmp_path / below))


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs"))
    (tmp_path / "emus").mkdir()
    assert refusal(tmp_path).kind == "data.empty_class"


def test_every_empty_class_is_named(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs"), "emus/a.txt", "gnus/a.txt")
    error = refusal(tmp_path)
    assert error.kind == "data.empty_class"
    assert str(tmp_path / "emus") in str(error)
    assert str(tmp_path / "gnus") in str(error)


def test_an_empty_class_in_val_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats"))
    (tmp_path / "val" / "dogs").mkdir()
    assert refusal(tmp_path).kind == "data.empty_class"


def test_a_class_in_val_that_train_lacks_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dog"))
    error = refusal(tmp_path)
    assert error.kind == "data.unknown_class"
    assert "Did you mean 'dogs'?" in (error.to_do or "")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cats/a.txt", "dogs/b.txt")
    assert refusal(tmp_path).kind == "data.no_images"


@pytest.mark.parametrize("loose", [[], ["1.png", "2.png"]])
def test_a_folder_without_class_folders_is_refused_with_an_example(
    tmp_path: Path, loose: list[str]
) -> None:
    error = refusal(put(tmp_path, *loose))
    assert error.kind == "data.no_class_folders"


def test_an_empty_val_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs"))
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path).kind == "data.no_class_folders"


def test_val_without_train_is_refused(tmp_path: Path) -> None:
    assert refusal(put(tmp_path, *pictures("val/cats", "val/dogs"))).kind == "data.no_train_split"


def test_a_root_that_is_a_pattern_is_refused_with_what_to_give(tmp_path: Path) -> None:
    assert refusal(tmp_path / "*").kind == "data.not_found"


def test_an_absent_root_is_refused_with_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "ants_bees").mkdir()
    error = refusal(tmp_path / "ant_bees")
    assert error.kind == "data.not_found"
    assert f"Did you mean '{tmp_path / 'ants_bees'}'?" in (error.to_do or "")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    error = refusal(put(tmp_path, "photos.txt") / "photos.txt")
    assert error.kind == "data.not_a_folder"


@pytest.mark.parametrize("root", ["~nobody_of_this_name/photos", "x" * 300])
def test_a_root_that_the_system_cannot_look_up_is_refused(root: str) -> None:
    with fails("data.not_found", key="data.root"):
        find_train_val(DataConfig(root=root), seed=0)


def test_two_val_folders_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "validation/cats"))
    error = refusal(tmp_path)
    assert error.kind == "data.two_split_folders"
    assert str(error).startswith(str(tmp_path))


def test_two_folders_of_one_name_in_two_unicode_forms_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures(E_ACUTE, E_ACUTE_NFD, "cats"))
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes both forms for one name")
    assert refusal(tmp_path).kind == "data.similar_class_names"


# The share that is held out


def test_held_out_images_are_said_in_one_line(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs"))
    (note,) = find(tmp_path).notes
    assert note == (
        f"{tmp_path} has no val folder: 2 of 10 images held out for validation "
        "(data.val_fraction 0.2, stratified, seed 0)"
    )


def test_no_image_is_both_trained_on_and_held_out_and_none_is_lost(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=7))
    found = find(tmp_path)
    assert sorted([*found.train.paths, *found.val.paths]) == sorted(tmp_path.glob("*/*"))


def test_the_share_is_taken_of_every_class(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", count=10), *pictures("dogs", count=20))
    held_out = classes_of(names(find(tmp_path).val, tmp_path))
    assert held_out == {"cats": 2, "dogs": 4}


@pytest.mark.parametrize("val_fraction", [0.001, 0.5, 0.999])
def test_every_class_is_on_both_sides(tmp_path: Path, val_fraction: float) -> None:
    put(tmp_path, *pictures("cats", count=2), *pictures("dogs", count=9))
    found = find(tmp_path, val_fraction=val_fraction)
    assert set(found.train.labels) == set(found.val.labels) == {0, 1}


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=9))
    found = find(tmp_path)
    for part in (found.train, found.val):
        folders = [path.parent.name for path in part.paths]
        assert folders == [part.class_names[label] for label in part.labels]


def test_the_same_seed_holds_out_the_same_images(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=20))
    assert find(tmp_path, seed=3) == find(tmp_path, seed=3)


def test_another_seed_holds_out_other_images(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=20))
    assert find(tmp_path, seed=0).val.paths != find(tmp_path, seed=1).val.paths


def test_two_classes_of_one_size_do_not_lose_the_same_positions() -> None:
    _, held_out = stratified_split(
        [0] * 50 + [1] * 50, [f"{i}.png" for i in range(100)], 0.2, seed=0
    )
    assert [p for p in held_out if p < 50] != [p - 50 for p in held_out if p >= 50]


def test_neither_place_nor_creation_order_changes_what_is_held_out(tmp_path: Path) -> None:
    files = pictures("cats", "dogs", count=20)
    one = put(tmp_path / "one", *files)
    other = put(tmp_path / "other", *reversed(files))
    assert names(find(one).val, one) == names(find(other).val, other)


def test_a_class_of_one_image_is_refused_by_name_with_what_to_do(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", count=5), "dogs/only.png")
    error = refusal(tmp_path)
    assert error.kind == "data.too_few_images"


def test_a_class_of_one_image_is_no_problem_beside_a_val_folder(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs", count=1))
    assert len(find(tmp_path).train) == 2


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    # Class folders side by side with test/, without train/: test is a split here, no class.
    put(tmp_path, *pictures("cats", "dogs", "test/cats", "test/dogs"))
    found = find(tmp_path)
    read = names(found.train, tmp_path) + names(found.val, tmp_path)
    assert not [name for name in read if name.startswith("test/")]


# Folders that are read as classes, and may be none


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (
            [f"{s}/{t}/{c}" for s in ("setA", "setB") for t in ("train", "val") for c in "cd"],
            "setA, setB are read as classes, but each contains split folders (train, val). Let "
            "data.root be {root}/setA or another of them",
        ),
        (
            [f"{c}/{t}" for c in ("cat", "dog") for t in ("train", "valid")],
            "cat, dog are read as classes, but each contains split folders (train, valid). Put the "
            "splits above the classes, as in {root}/train/cat.",
        ),
        (
            [f"{s}/{c}" for s in ("setA", "setB") for c in ("cat", "dog")],
            "setA, setB are read as classes, and each contains the folders cat, dog. If those are "
            "the classes, join them in one folder, or let data.root be {root}/setA or another.",
        ),
    ],
)
def test_parents_that_are_read_as_classes_are_said(
    tmp_path: Path, folders: list[str], said: str
) -> None:
    put(tmp_path, *pictures(*folders))
    (warning,) = find(tmp_path).warnings
    assert said.format(root=tmp_path) in warning


@pytest.mark.parametrize(
    "folders",
    [
        ["cat/monday", "cat/tuesday", "dog/monday", "dog/friday"],  # sessions
        ["cat/photos", "dog/photos"],
        ["cat", "cat/train", "dog", "dog/train"],
        ["train/cat/1", "train/cat/2", "train/dog/1", "val/cat", "val/dog"],
    ],
)
def test_folders_within_classes_are_not_doubted(tmp_path: Path, folders: list[str]) -> None:
    put(tmp_path, *pictures(*folders))
    assert find(tmp_path).warnings == ()


# Photos in unsupported formats


def test_photos_in_other_formats_are_counted_and_said(tmp_path: Path) -> None:
    put(
        tmp_path,
        *pictures("cats", "dogs"),
        "cats/1.HEIC",
        "cats/2.heic",
        "dogs/3.avif",
        "dogs/n.txt",
    )
    found = find(tmp_path)
    assert found.warnings == (
        f"{tmp_path}: 3 photos in unsupported formats (2 .heic, 1 .avif): save them as JPEG",
    )
    assert "skipped 1 that are not images: dogs/n.txt" in found.notes[-1]


def test_a_folder_of_photos_in_other_formats_says_so(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.heic", "dogs/2.heic")
    assert refusal(tmp_path).kind == "data.no_images"


def test_a_class_of_photos_in_other_formats_says_so(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs"), "emus/1.heic")
    assert refusal(tmp_path).kind == "data.empty_class"


# Splits of an evaluation


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A train folder of 10 images, val of 4, test of 2."""
    root = tmp_path / "splits"
    put(root, *pictures("train/cats", "train/dogs", count=5))
    put(root, *pictures("val/cats", "val/dogs", count=2))
    return put(root, *pictures("test/cats", "test/dogs", count=1))


@pytest.mark.parametrize(("split", "count"), [("train", 10), ("val", 4), ("test", 2)])
def test_each_split_is_found_by_its_folder(splits: Path, split: str, count: int) -> None:
    assert len(split_of(splits, split)) == count


def test_held_out_images_are_found_again(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cats", "dogs", count=9))
    found = find(tmp_path)
    assert split_of(tmp_path, "val").paths == found.val.paths
    assert split_of(tmp_path, "train").paths == found.train.paths


def test_train_without_a_val_folder_leaves_out_what_was_held_out(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs"))
    assert split_of(tmp_path, "train").paths == find(tmp_path).train.paths


def test_an_absent_test_split_is_refused_with_what_there_is(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cats", "train/dogs", "val/cats", "val/dogs"))
    with fails("data.no_such_split"):
        split_of(tmp_path, "test")


@pytest.mark.parametrize(("split", "count"), [("train", 10), ("val", 4), ("test", 2)])
def test_another_folder_of_splits_is_read_by_split(
    tmp_path: Path, splits: Path, split: str, count: int
) -> None:
    put(tmp_path / "own", *pictures("cats", "dogs"))
    assert len(split_of(tmp_path / "own", split, data=splits)) == count


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_another_folder_of_classes_is_read_whole(tmp_path: Path, split: str) -> None:
    put(tmp_path / "other", *pictures("cats", "dogs"))
    assert len(split_of(tmp_path, split, data=tmp_path / "other")) == 10


def test_another_folder_may_hold_fewer_classes(tmp_path: Path) -> None:
    put(tmp_path / "other", *pictures("dogs"))
    images = split_of(tmp_path, "val", data=tmp_path / "other")
    assert (images.class_names, set(images.labels)) == (("cats", "dogs"), {1})


def test_a_class_that_the_network_does_not_know_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "other", *pictures("cats", "emus"))
    with fails("data.unknown_class", path="emus"):
        split_of(tmp_path, "val", data=tmp_path / "other")


def test_the_first_few_unknown_classes_are_named_and_how_many_more(tmp_path: Path) -> None:
    put(tmp_path / "other", *pictures("cats", "emus", "gnus", "koi", "newts", "owls", "yaks"))
    with fails("data.unknown_class", path="emus"):
        split_of(tmp_path, "val", data=tmp_path / "other")


def test_class_names_of_the_network_decide_the_labels(splits: Path) -> None:
    images = find_split(
        DataConfig(root=str(splits)), "val", class_names=("dogs", "cats"), seed=0, root=None
    )
    assert [images.class_names[label] for label in images.labels] == [
        path.parent.name for path in images.paths
    ]


@pytest.mark.parametrize("key", ["output_dir", "features.dir"])
def test_nothing_is_written_where_every_folder_is_a_class(
    make_config: Callable[..., Config], photos: Path, key: str
) -> None:
    among = photos / "train"
    sections: dict[str, Any] = {"output_dir": str(among / "runs")}
    if key == "features.dir":
        sections = {"features": {"dir": str(among)}}
    with fails("output.inside_data", key=key):
        dry_run(make_config(**sections))
    config = make_config(output_dir=str(photos / "runs"))
    assert dry_run(config).config["output_dir"] == str(photos / "runs")


def test_other_data_that_is_absent_is_named_by_its_option(photos: Path) -> None:
    own = DataConfig(root=str(photos))
    with fails("data.not_found", key="--data"):
        find_split(own, "val", class_names=("class_0", "class_1"), seed=0, root="nowhere")
