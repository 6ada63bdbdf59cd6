"""Tests of tables, groups and torchvision's datasets as data sources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.messages import fails
from helpers.photo_folders import file_names, find, put, refusal
from PIL import Image

from finetune.config.load import load_config
from finetune.config.schema import DataConfig
from finetune.data.images import Images
from finetune.data.sources import torchvision_arrays, torchvision_datasets
from finetune.data.sources.open import find_split, find_train_val
from finetune.data.splits.holdout import grouped_split


def table(root: Path, *lines: str, name: str = "photos.csv", head: str = "path,label") -> Path:
    """A table with these lines; a picture for every path ``img/…`` in them."""
    text = "\n".join([head, *lines])
    put(root, *re.findall(r"img/\w[\w.]*", text))
    (root / name).write_text(text + "\n", encoding="utf-8")
    return root / name


ROWS = [f"img/{label}{i}.png,{label}" for label in "ab" for i in range(5)]


# Tables


def test_a_table_is_split_as_folders_are(tmp_path: Path) -> None:
    found = find(table(tmp_path, *ROWS))
    assert (len(found.train), len(found.val), found.train.class_names) == (8, 2, ("a", "b"))
    assert found.held_out
    assert "has no train and val splits: 2 of 10 images held out" in found.notes[0]


def test_paths_are_relative_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "set", *ROWS)
    monkeypatch.chdir(tmp_path)
    assert all(path.is_file() for path in find("set/photos.csv").train.paths)


def test_labels_of_a_table_belong_to_their_paths(tmp_path: Path) -> None:
    train = find(table(tmp_path, *ROWS)).train
    assert [train.class_names[label] for label in train.labels] == [n[0] for n in file_names(train)]


def test_a_table_with_tabs_other_names_and_more_columns(tmp_path: Path) -> None:
    lines = [f"x\timg/{label}{i}.png\t{label}" for label in "ab" for i in range(5)]
    path = table(tmp_path, *lines, name="P.TSV", head="note\tfile\tkind")
    assert len(find(path, path_column="file", label_column="kind").train) == 8


@pytest.mark.parametrize("words", [("train", "val"), ("Training", "VALID"), ("TRAIN", "dev")])
def test_a_split_column_is_followed(tmp_path: Path, words: tuple[str, str]) -> None:
    lines = [f"{row},{words[i % 5 == 0]}" for i, row in enumerate(ROWS)]
    found = find(table(tmp_path, *lines, head="path,label,split"))
    assert (file_names(found.val), len(found.train)) == (["a0.png", "b0.png"], 8)
    assert not found.held_out


def test_test_rows_are_never_trained_on(tmp_path: Path) -> None:
    lines = [f"{row},{'test' if i % 5 == 0 else 'train'}" for i, row in enumerate(ROWS)]
    path = table(tmp_path, *lines, head="path,label,split")
    found = find(path)
    assert len(found.train) + len(found.val) == 8
    config = DataConfig(root=str(path))
    held = find_split(config, "test", class_names=("a", "b"), seed=0, root=None)
    assert file_names(held) == ["a0.png", "b0.png"]


def test_a_table_of_test_rows_alone_is_not_trained_on(tmp_path: Path) -> None:
    path = table(tmp_path, *(f"{row},test" for row in ROWS), head="path,label,split")
    assert refusal(path).kind == "data.no_train_split"
    config = DataConfig(root=str(path))
    assert len(find_split(config, "test", class_names=("a", "b"), seed=0, root=None)) == 10


def test_a_table_of_val_rows_alone_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, *(f"{row},val" for row in ROWS), head="path,label,split")
    assert refusal(path).kind == "data.no_train_split"


def test_a_table_as_other_data_for_eval_is_read_whole(tmp_path: Path) -> None:
    path = table(tmp_path, *ROWS)
    config = DataConfig(root="gone", group_pattern="x")
    whole = find_split(config, "val", class_names=("b", "a"), seed=0, root=str(path))
    assert len(whole) == 10
    assert whole.labels[0] == 1


def test_quoted_fields_keep_commas_quotes_and_newlines(tmp_path: Path) -> None:
    odd = 'img, "x"\n1.png'
    put(tmp_path, odd, "p.png", "q.png", "r.png")
    quoted = odd.replace('"', '""')
    text = f'path,label\n"{quoted}",a\np.png,a\nq.png,b\nr.png,"b"\n'
    (tmp_path / "photos.csv").write_text(text)
    found = find(tmp_path / "photos.csv")
    assert odd in file_names(found.train) + file_names(found.val)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_a_name_that_is_not_utf_8_is_found(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    put(tmp_path, odd, "p.png", "q.png", "r.png")
    lines = [b"path,label", b"caf\xe9.png,a", b"p.png,a", b"q.png,b", b"r.png,b"]
    (tmp_path / "photos.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = find(tmp_path / "photos.csv")
    assert odd in file_names(found.train) + file_names(found.val)


def test_every_problem_of_a_table_comes_at_once_with_its_line(tmp_path: Path) -> None:
    lines = [
        *ROWS,  # lines 2 to 11
        "img/a0.png,b,train",
        "gone.png,a",
        "img/a1.png,",
        ",a",
        "img/a0.png,b",
    ]
    path = table(tmp_path, *lines)
    error = refusal(path)
    assert (error.kind, error.path) == ("data.table_rows", str(path))
    assert [problem.line for problem in error.problems] == [12, 13, 14, 15, 16]


def test_a_line_number_counts_lines_within_quotes(tmp_path: Path) -> None:
    path = table(tmp_path, '"two\nlines.png",a', "gone.png,a")
    assert refusal(path).kind == "data.table_rows"


def test_many_problems_are_bounded(tmp_path: Path) -> None:
    error = refusal(table(tmp_path, *(f"gone{i}.png,a" for i in range(500))))
    assert error.kind == "data.table_rows"
    assert len(str(error).splitlines()) == 12


@pytest.mark.parametrize(
    ("head", "options", "kind"),
    [
        ("file,label", {}, "no_such_column"),
        ("pth,label", {}, "no_such_column"),
        ("path:label", {}, "table_rows"),
        ("path,label,label", {}, "table_columns"),
        ("path,label", {"split_column": "fold"}, "no_such_column"),
        ("path,label", {"group_column": "patient"}, "no_such_column"),
    ],
)
def test_columns_that_are_absent_are_named(
    tmp_path: Path, head: str, options: dict[str, str], kind: str
) -> None:
    error = refusal(table(tmp_path, head=head), **options)
    assert error.kind == f"data.{kind}"
    assert {problem.line for problem in error.problems} == {1}


def test_an_unknown_split_is_refused_with_the_nearest(tmp_path: Path) -> None:
    error = refusal(table(tmp_path, "img/a.png,a,trian", head="path,label,split"))
    assert (error.kind, error.line) == ("data.unknown_split", 2)
    assert error.to_do == "Did you mean 'train'?"


def test_one_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    lines = ["img/a.png,a,train", "img/a.png,a,val"]
    error = refusal(table(tmp_path, *lines, head="path,label,split"))
    assert error.kind == "data.conflicting_rows"


def test_a_row_that_repeats_another_counts_once(tmp_path: Path) -> None:
    found = find(table(tmp_path, *ROWS, ROWS[0], "img/../img/a1.png,a"))
    assert len(found.train) + len(found.val) == 10
    assert "2 rows repeat an earlier one" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "data.no_images"),
        ("path,label".encode("utf-16"), "data.not_text"),
        (b"path,label\n", "data.no_images"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "photos.csv").write_bytes(content)
    assert refusal(tmp_path / "photos.csv").kind == kind


@pytest.mark.parametrize("text", ["path,label\nimg/a.png,caf\xe9\n", "path,caf\xe9\n"])
def test_a_table_in_another_encoding_is_one_message(tmp_path: Path, text: str) -> None:
    table(tmp_path, *ROWS)
    path = tmp_path / "photos.csv"
    path.write_bytes(text.encode("cp1252") + b"img/b.png,caf\xe9\n" * 20)
    line = text.split("\xe9")[0].count("\n") + 1
    error = refusal(path)
    assert (error.kind, error.path, error.line) == ("data.not_text", str(path), line)


def test_a_table_without_a_first_line_of_names_is_told_so(tmp_path: Path) -> None:
    error = refusal(table(tmp_path, *ROWS[1:], head=ROWS[0]))
    assert error.kind == "data.table_without_header"


def test_an_absent_table_is_refused_with_the_nearest_sibling(tmp_path: Path) -> None:
    table(tmp_path, *ROWS)
    assert f"Did you mean '{tmp_path / 'photos.csv'}'?" in str(refusal(tmp_path / "foto.csv"))


def test_one_class_in_a_table_is_refused(tmp_path: Path) -> None:
    assert refusal(table(tmp_path, *ROWS[:5])).kind == "data.one_class"


def test_a_class_in_val_that_train_lacks_is_refused(tmp_path: Path) -> None:
    lines = [*(f"{row},train" for row in ROWS), "img/z.png,aa,val"]
    error = refusal(table(tmp_path, *lines, head="path,label,split"))
    assert error.kind == "data.unknown_class"


@pytest.mark.parametrize(
    ("key", "value", "root"),
    [
        ("path_column", "file", "photos"),
        ("split_column", "fold", "photos"),
        ("folder", "x", "photos"),
        ("download", True, "photos.csv"),
    ],
)
def test_an_option_of_another_source_is_refused(key: str, value: Any, root: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: has no effect unless root is"):
        DataConfig(root=root, **{key: value})


# Groups


def frames(root: Path, *, people: int = 12, shots: int = 4) -> Path:
    """Pictures of people, several of each, in two classes."""
    return put(
        root,
        *(f"{'ab'[p % 2]}/p{p:02d}_{s}.png" for p in range(people) for s in range(shots)),
    )


def people_of(images: Images) -> set[str]:
    return {path.name[:3] for path in images.paths}


@pytest.mark.parametrize("pattern", [r"p\d+", r"/(p\d+)_", r"(p\d+)(_)?"])
def test_a_group_never_straddles_the_split(tmp_path: Path, pattern: str) -> None:
    found = find(frames(tmp_path), group_pattern=pattern)
    assert people_of(found.train) | people_of(found.val) == {f"p{i:02d}" for i in range(12)}
    assert not people_of(found.train) & people_of(found.val)
    assert len(found.val) == 8


def test_a_group_column_does_the_same(tmp_path: Path) -> None:
    lines = [f"img/{i}.png,{'ab'[i % 2]},g{i // 4}" for i in range(40)]
    found = find(table(tmp_path, *lines, head="path,label,group"))
    of = {"train": set(found.train.groups), "val": set(found.val.groups)}
    assert of["train"]
    assert of["val"]
    assert not of["train"] & of["val"]


def test_a_pattern_that_matches_nothing_is_refused_with_example_paths(tmp_path: Path) -> None:
    error = refusal(frames(tmp_path), group_pattern=r"patient\d+")
    assert error.kind == "data.pattern_matches_nothing"


@pytest.mark.parametrize("pattern", ["^", "x*", r"(\d*)\w+"])
def test_a_pattern_that_finds_nothing_in_the_paths_is_refused(tmp_path: Path, pattern: str) -> None:
    error = refusal(put(tmp_path, "a/pa.png", "a/pb.png", "b/pc.png"), group_pattern=pattern)
    assert error.kind == "data.pattern_matches_nothing"


def test_paths_that_do_not_match_are_said_and_are_groups_of_their_own(tmp_path: Path) -> None:
    put(frames(tmp_path), *(f"a/other{i}.png" for i in range(10)))
    found = find(tmp_path, group_pattern=r"p\d+")
    assert "10 paths do not match; each is a separate group: a/other0.png" in found.notes[0]
    assert len(found.train) + len(found.val) == 58


def test_a_pattern_that_is_no_regular_expression_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('model: {name: resnet18}\ndata: {root: x, group_pattern: "p("}\n')
    with fails("config.invalid_value", key="data.group_pattern"):
        load_config(path)


def test_a_class_in_one_group_is_refused(tmp_path: Path) -> None:
    put(frames(tmp_path), "c/p50_1.png", "c/p50_2.png")
    assert refusal(tmp_path, group_pattern=r"p\d+").kind == "data.too_few_groups"


def test_groups_on_both_sides_of_the_datas_own_split_are_refused(tmp_path: Path) -> None:
    frames(tmp_path / "train")
    put(tmp_path, "val/a/p00_9.png", "val/b/p99_9.png")
    error = refusal(tmp_path, group_pattern=r"p\d+")
    assert error.kind == "data.shared_groups"


def test_whole_groups_meet_the_share_of_every_class_nearly() -> None:
    rng = np.random.default_rng(0)
    labels: list[int] = []
    groups: list[str] = []
    for group in range(200):
        size = int(rng.integers(1, 20))
        kinds = rng.choice(5, size=2)
        labels += [int(kinds[i % 2]) for i in range(size)]
        groups += [f"g{group}"] * size
    for seed in range(5):
        _, held = grouped_split(labels, groups, 0.2, seed=seed, class_names="abcde")
        total, of_held = Counter(labels), Counter(labels[i] for i in held)
        assert all(0.17 < of_held[c] / total[c] < 0.23 for c in total)


def test_another_seed_holds_out_other_groups(tmp_path: Path) -> None:
    config = DataConfig(root=str(frames(tmp_path)), group_pattern=r"p\d+")
    held = {frozenset(people_of(find_train_val(config, seed=s).val)) for s in range(6)}
    assert len(held) > 2


# What is held out does not depend on the machine


def test_one_more_photo_moves_no_other_across_the_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(50)))
    before = set(find(tmp_path).val.paths)
    put(tmp_path, "a/000.png")
    after = set(find(tmp_path).val.paths)
    assert len(before ^ after) <= 1


def test_what_is_held_out_is_the_same_on_every_machine(tmp_path: Path) -> None:
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    held = [path.relative_to(tmp_path).as_posix() for path in find(tmp_path).val.paths]
    assert held == HELD_OUT


HELD_OUT = ["a/1.png", "a/8.png", "b/0.png", "b/1.png"]


# torchvision's datasets, in the form in which they lie on disk


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn stand-ins have other checksums than the real files."""
    from torchvision.datasets import flowers102, stl10, svhn

    for module in (flowers102, svhn, stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, *_: Path(path).is_file())


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    put(data, *(f"images/{i}.jpg" for i in range(12)))
    (data / "variants.txt").write_text("A300\nBoeing 707-320\n")
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{4 * number + i} {('A300', 'Boeing 707-320')[i % 2]}" for i in range(4)]
        (data / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")


def flowers(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    put(base, *(f"jpg/image_{i:05d}.jpg" for i in range(1, 13)))
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2] * 6)})
    ids = {"trnid": [1, 2, 3, 4], "valid": [5, 6, 7, 8], "tstid": [9, 10, 11, 12]}
    savemat(base / "setid.mat", {key: np.array(value) for key, value in ids.items()})


def food(root: Path) -> None:
    base = root / "food-101"
    for split, numbers in (("train", range(6)), ("test", range(6, 9))):
        (base / "meta").mkdir(parents=True, exist_ok=True)
        listing = {c: [f"{c}/{i}" for i in numbers] for c in ("pizza", "sushi")}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listing))
        put(base, *(f"images/{c}/{i}.jpg" for c in listing for i in numbers))


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, numbers in (("trainval", range(6)), ("test", range(6, 9))):
        rows = [f"{n}_{i} {k} 1 1" for k, n in ((1, "Abyssinian"), (2, "pug")) for i in numbers]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(rows))
        put(base, *(f"images/{row.split()[0]}.jpg" for row in rows))


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        rows = [f"{c}/{c}_{number}{i}.jpg" for c in ("banded", "woven") for i in range(3)]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(rows))
        put(base, *(f"images/{row}" for row in rows))


def eurosat(root: Path) -> None:
    put(root / "eurosat" / "2750", *(f"{c}/{i}.jpg" for c in ("Forest", "River") for i in range(5)))


def signs(root: Path) -> None:
    base = root / "gtsrb"
    put(base, *(f"GTSRB/Training/{c:05d}/{i}.ppm" for c in range(2) for i in range(5)))
    put(base, *(f"GTSRB/Final_Test/Images/{i}.ppm" for i in range(4)))
    rows = "".join(f"{i}.ppm;{i % 2}\n" for i in range(4))
    (base / "GT-final_test.csv").write_text(f"Filename;ClassId\n{rows}")


def countries(root: Path) -> None:
    put(
        root / "country211",
        *(f"{s}/{c}/{i}.jpg" for s in ("train", "valid", "test") for c in "AB" for i in range(3)),
    )


def imagenette(root: Path) -> None:
    ids = ("n01440764", "n02102040")
    put(
        root / "imagenette2",
        *(f"{s}/{c}/{i}.JPEG" for s in ("train", "val") for c in ids for i in range(3)),
    )


def sst2(root: Path) -> None:
    put(
        root / "rendered-sst2",
        *(
            f"{s}/{c}/{i}.png"
            for s in ("train", "valid", "test")
            for c in ("negative", "positive")
            for i in range(3)
        ),
    )


def cars(root: Path) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    kind = np.dtype([("fname", object), ("class", object)])
    for folder, file in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        rows = np.array([(f"{i}.jpg", np.uint8(i % 2 + 1)) for i in range(10)], dtype=kind)
        savemat(base / file, {"annotations": rows})
        put(base / folder, *(f"{i}.jpg" for i in range(10)))
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})


def scenes(root: Path) -> None:
    base = root / "SUN397"
    put(base, *(f"{p}/sun_{i}.jpg" for p in ("a/abbey", "b/bar/indoor") for i in range(5)))
    (base / "ClassName.txt").write_text("/a/abbey\n/b/bar/indoor\n")


def caltech101(root: Path) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    folders = ("BACKGROUND_Google", "ant", "bonsai")
    put(base, *(f"{c}/image_{i:04d}.jpg" for c in folders for i in range(1, 6)))


def caltech256(root: Path) -> None:
    base = root / "caltech256" / "256_ObjectCategories"
    put(base, *(f"{c}/{c[:3]}_{i:04d}.jpg" for c in ("001.ak47", "002.flag") for i in range(1, 6)))


MADE: dict[str, tuple[Callable[[Path], None], tuple[str, str], tuple[int, int, int]]] = {
    "FGVCAircraft": (aircraft, ("A300", "Boeing 707-320"), (4, 4, 4)),
    "Flowers102": (flowers, ("pink primrose", "hard-leaved pocket orchid"), (4, 4, 4)),
    "Food101": (food, ("pizza", "sushi"), (10, 2, 6)),
    "OxfordIIITPet": (pets, ("Abyssinian", "Pug"), (10, 2, 6)),
    "DTD": (dtd, ("banded", "woven"), (6, 6, 6)),
    "EuroSAT": (eurosat, ("Forest", "River"), (8, 2, 0)),
    "GTSRB": (signs, ("00", "01"), (8, 2, 4)),
    "Country211": (countries, ("A", "B"), (6, 6, 6)),
    "Imagenette": (imagenette, ("tench", "English springer"), (6, 6, 0)),
    "RenderedSST2": (sst2, ("negative", "positive"), (6, 6, 6)),
    "StanfordCars": (cars, ("Audi", "BMW"), (8, 2, 10)),
    "SUN397": (scenes, ("abbey", "bar/indoor"), (8, 2, 0)),
    "Caltech101": (caltech101, ("ant", "bonsai"), (8, 2, 0)),
    "Caltech256": (caltech256, ("001.ak47", "002.flag"), (8, 2, 0)),
}


def test_every_dataset_of_files_is_tried() -> None:
    assert sorted(MADE) == sorted(torchvision_datasets.FILES)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", MADE)
def test_a_torchvision_dataset_of_files_is_read_with_its_splits(tmp_path: Path, name: str) -> None:
    make, class_names, counts = MADE[name]
    make(tmp_path)
    config = DataConfig(root=f"torchvision:{name}", folder=str(tmp_path))
    found = find_train_val(config, seed=0)
    assert found.train.class_names == class_names
    assert (len(found.train), len(found.val)) == counts[:2]
    assert all(path.is_file() for path in found.train.paths + found.val.paths)
    assert set(found.train.labels) == {0, 1}
    if counts[2]:
        test = find_split(config, "test", class_names=class_names, seed=0, root=None)
        assert len(test) == counts[2]
        assert all(path.is_file() for path in test.paths)


def test_labels_of_a_torchvision_dataset_are_the_official_ones(tmp_path: Path) -> None:
    aircraft(tmp_path)
    (tmp_path / "fgvc-aircraft-2013b/data/variants.txt").write_text("Boeing 707-320\nA300\n")
    found = find("torchvision:FGVCAircraft", folder=str(tmp_path))
    assert found.train.class_names == ("Boeing 707-320", "A300")
    by_name = {
        path.name: label for path, label in zip(found.train.paths, found.train.labels, strict=True)
    }
    assert by_name == {"0.jpg": 1, "1.jpg": 0, "2.jpg": 1, "3.jpg": 0}


def idx(path: Path, array: np.ndarray) -> None:
    """Write an array in MNIST's file format: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [0x800 + array.ndim, *array.shape]
    path.write_bytes(b"".join(n.to_bytes(4, "big") for n in head) + array.tobytes())


def mnist(root: Path, name: str = "MNIST") -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for kind in ("train", "t10k"):
        idx(root / name / "raw" / f"{kind}-images-idx3-ubyte", pixels)
        idx(root / name / "raw" / f"{kind}-labels-idx1-ubyte", np.arange(40, dtype=np.uint8) % 10)
    return pixels


def test_an_array_dataset_is_written_out_once_with_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = mnist(tmp_path)
    found = find("torchvision:MNIST", folder=str(tmp_path))
    assert found.train.class_names[3] == "3 - three"
    assert (len(found.train), len(found.val)) == (30, 10)
    for path, label in zip(found.train.paths, found.train.labels, strict=True):
        number = int(path.stem)
        assert label == number % 10
        assert (np.asarray(Image.open(path)) == pixels[number]).all()
    monkeypatch.setattr(torchvision_arrays, "_write", None)
    again = find("torchvision:MNIST", folder=str(tmp_path))
    assert again.train.paths == found.train.paths


def test_arrays_exchanged_for_others_of_equal_size_and_time_are_written_out_anew(
    tmp_path: Path,
) -> None:
    """MNIST and FashionMNIST have files of the same names and sizes."""
    pixels = mnist(tmp_path)
    files = sorted((tmp_path / "MNIST" / "raw").iterdir())
    for path in files:
        os.utime(path, (1, 1))
    find("torchvision:MNIST", folder=str(tmp_path))
    for path in files:
        if "images" in path.name:
            idx(path, 255 - pixels)
            os.utime(path, (1, 1))
    found = find("torchvision:MNIST", folder=str(tmp_path))
    path = found.train.paths[0]
    assert (np.asarray(Image.open(path)) == 255 - pixels[int(path.stem)]).all()


def test_class_names_with_a_slash_and_a_cache_that_lost_files(tmp_path: Path) -> None:
    mnist(tmp_path, "FashionMNIST")
    found = find("torchvision:FashionMNIST", folder=str(tmp_path))
    assert "T-shirt/top" in found.train.class_names
    found.train.paths[0].unlink()
    again = find("torchvision:FashionMNIST", folder=str(tmp_path))
    assert again.train.paths[0].is_file()


def test_an_old_file_of_torch_save_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist(tmp_path)
    for name in ("training.pt", "test.pt"):
        put(tmp_path, f"MNIST/processed/{name}")
    monkeypatch.setattr("torch.load", None)
    assert len(find("torchvision:MNIST", folder=str(tmp_path)).train) == 30


@pytest.mark.usefixtures("unchecked")
def test_colour_arrays_keep_their_channels_and_axes(tmp_path: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for split in ("train", "test"):
        digits = np.arange(1, 21)[:, None] % 10 + 1
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": digits})
    found = find("torchvision:SVHN", folder=str(tmp_path), val_fraction=0.5)
    for path in found.train.paths:
        assert (np.asarray(Image.open(path)) == pixels[..., int(path.stem)]).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CIFAR10", "pickled"),
        ("Flower102", "unknown_dataset"),
        ("flowers102", "unknown_dataset"),
        ("ImageFolder", "unknown_dataset"),
        ("DTD", "not_found"),
        ("MNIST", "not_found"),
    ],
)
def test_a_torchvision_dataset_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, kind: str
) -> None:
    error = refusal(f"torchvision:{name}", folder=str(tmp_path))
    place = ("data.root", f"torchvision:{name}")
    assert (error.kind, error.key, error.path) == (f"data.{kind}", *place)


def test_a_download_that_fails_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from torchvision.datasets import dtd as module

    def fail(*_: Any, **__: Any) -> None:
        print("downloading")
        raise URLError("no route")

    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    error = refusal("torchvision:DTD", folder=str(tmp_path), download=True)
    assert error.kind == "data.unreadable"


def test_reading_a_folder_loads_neither_torch_nor_torchvision(tmp_path: Path) -> None:
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(3)))
    code = (
        "import sys\nfrom finetune.config.schema import DataConfig\n"
        "from finetune.data.sources.open import find_train_val\n"
        f"find_train_val(DataConfig(root={str(tmp_path)!r}), seed=0)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_table_that_never_ends_is_not_read(tmp_path: Path) -> None:
    table = tmp_path / "photos.csv"
    table.symlink_to("/dev/zero")
    with fails("data.not_a_file", key="data.root", path="photos.csv"):
        find_train_val(DataConfig(root=str(table)), seed=0)
