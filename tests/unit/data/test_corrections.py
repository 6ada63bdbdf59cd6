"""Tests of ``data.corrections``: labels corrected and photos left out when images are listed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.messages import fails
from helpers.photo_folders import put

from finetune.config.schema import DataConfig
from finetune.data.checks.survey import survey
from finetune.data.fingerprint import fingerprint_of
from finetune.data.images import TrainVal
from finetune.data.sources.known_photos import find_splits
from finetune.data.sources.open import find_split, find_train_val

NAMES = [f"{number}.png" for number in range(10)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten photos of cats and ten of dogs, without splits."""
    put(tmp_path / "photos", *(f"{c}/{name}" for c in ("cats", "dogs") for name in NAMES))
    return tmp_path / "photos"


def corrected(root: Path, *rows: str, head: str = "path,action,label") -> DataConfig:
    """A config whose table of corrections has these rows."""
    table = root.parent / "corrections.csv"
    table.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    return DataConfig(root=str(root), corrections=str(table))


def labels_of(found: TrainVal) -> dict[str, tuple[str, str]]:
    """The class and split of each image by its path."""
    return {
        str(path.relative_to(found.base)): (images.class_names[label], split)
        for split, images in (("train", found.train), ("val", found.val))
        for path, label in zip(images.paths, images.labels, strict=True)
    }


def test_labels_are_corrected_and_photos_left_out(root: Path) -> None:
    plain = labels_of(find_train_val(DataConfig(root=str(root)), seed=0))
    found = find_train_val(
        corrected(root, "cats/1.png,relabel,dogs", "dogs/2.png,drop,", "dogs/3.png,keep,dogs"),
        seed=0,
    )
    expected = dict(plain)
    expected["cats/1.png"] = ("dogs", plain["cats/1.png"][1])
    del expected["dogs/2.png"]
    assert labels_of(found) == expected
    assert found.notes[-1].endswith("1 label corrected, 1 left out, 1 confirmed")
    assert found.corrected[0] == ("cats/1.png", "relabel", "dogs")


@pytest.mark.parametrize("seed", range(5))
def test_random_corrections_leave_all_other_photos_as_they_are(root: Path, seed: int) -> None:
    """The splits too, which are drawn before."""
    generator = random.Random(seed)
    expected = labels_of(find_train_val(DataConfig(root=str(root)), seed=seed))
    rows = []
    for path in generator.sample(sorted(expected), 8):
        label, split = expected[path]
        action = generator.choice(["keep", "relabel", "drop"])
        other = "cats" if label == "dogs" else "dogs"
        rows.append(f"{path},{action},{other if action == 'relabel' else ''}")
        if action == "relabel":
            expected[path] = other, split
        elif action == "drop":
            del expected[path]
    assert labels_of(find_train_val(corrected(root, *rows), seed=seed)) == expected


def test_every_way_to_read_a_split_is_corrected(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, *(f"{s}/{c}/{n}" for s in ("train", "val", "test") for c in "ab" for n in NAMES))
    config = corrected(root, *(f"{s}/a/1.png,relabel,b" for s in ("train", "val", "test")))
    for images in (
        *find_splits(config, seed=0).values(),
        *(
            find_split(config, split, class_names=("a", "b"), seed=0, root=None)
            for split in ("train", "val", "test")
        ),
    ):
        at = [f"{path.parent.name}/{path.name}" for path in images.paths].index("a/1.png")
        assert images.class_names[images.labels[at]] == "b"
    elsewhere = find_split(config, "val", class_names=("a", "b"), seed=0, root=str(root / "val"))
    assert elsewhere.counts() == [10, 10]


def test_check_data_sees_the_corrected_labels(root: Path) -> None:
    found = survey(corrected(root, "cats/1.png,relabel,dogs", "dogs/2.png,drop,"), seed=0)
    seen = {
        str(Path(path).relative_to(root)): found.classes[label]
        for path, label in zip(found.paths, found.class_of, strict=True)
    }
    assert seen["cats/1.png"] == "dogs"
    assert "dogs/2.png" not in seen
    assert (len(seen), len(found.split_of), found.refusal) == (19, 19, None)


def test_the_fingerprint_of_the_data_changes(root: Path) -> None:
    plain = fingerprint_of(find_train_val(DataConfig(root=str(root)), seed=0))
    for row in ("cats/1.png,relabel,dogs", "cats/1.png,drop,"):
        assert fingerprint_of(find_train_val(corrected(root, row), seed=0)) != plain
    kept = fingerprint_of(find_train_val(corrected(root, "cats/1.png,keep,"), seed=0))
    assert kept == plain


def test_paths_are_found_below_the_data_and_absolute(root: Path, tmp_path: Path) -> None:
    rows = [f"{root}/cats/1.png,drop,", '" cats/2.png ",DROP,']
    found = labels_of(find_train_val(corrected(root, *rows), seed=0))
    assert {"cats/1.png", "cats/2.png"}.isdisjoint(found)


def test_a_row_without_an_action_is_not_decided_yet(root: Path) -> None:
    config = corrected(root, "0.9,cats/1.png,,dogs", head="score,path,action,label")
    assert labels_of(find_train_val(config, seed=0))["cats/1.png"][0] == "cats"


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (["cats/11.png,drop,"], "data.image_not_found"),
        (["cat/1.png,drop,"], "data.image_not_found"),
        (["cats/1.png,relabel,dgos"], "data.unknown_class"),
        (["cats/1.png,relabel,"], "data.empty_label"),
        (["cats/1.png,delete,"], "data.unknown_action"),
        (["cats/1.png,relable,dogs"], "data.unknown_action"),
        ([",drop,"], "data.invalid_path"),
        (["cats/1.png,drop,,,"], "data.number_of_fields"),
        (["cats/1.png,drop,", "cats/1.png,relabel,dogs"], "data.conflicting_rows"),
        ([f"cats/{name},drop," for name in NAMES], "data.empty_class"),
        (["cats/1.png,drop", "birds/1.png,drop,", "cats/2.png,relabel,x"], "data.image_not_found"),
        ([f"birds/{n}.png,drop," for n in range(2)], "data.table_rows"),
    ],
)
def test_wrong_rows_are_named(root: Path, rows: list[str], kind: str) -> None:
    with fails(kind, path="corrections.csv"):
        find_train_val(corrected(root, *rows), seed=0)


def test_columns_are_required(root: Path) -> None:
    with fails("data.missing_column", key="data.corrections"):
        find_train_val(corrected(root, "cats/1.png,dogs", head="file,label"), seed=0)


def test_the_table_must_be_there(root: Path) -> None:
    corrected(root)
    config = DataConfig(root=str(root), corrections=str(root.parent / "correction.csv"))
    with fails("data.not_found", key="data.corrections"):
        find_train_val(config, seed=0)
