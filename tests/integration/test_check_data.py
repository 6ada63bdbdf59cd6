"""Tests of ``finetune check-data``: findings, their levels, and the output."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.broken_files import BROKEN, ODD_NAMES, damage, picture, save
from helpers.messages import check_message, fails
from PIL import Image

from finetune.cli import app
from finetune.commands.check_data import _sizes, check_data
from finetune.config.schema import Config, DataConfig
from finetune.data.checks import inspect_dataset
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.sources.open import find_train_val
from finetune.report.check_data import render_check
from finetune.report.json_text import to_json
from finetune.report.layout import plain
from finetune.results.check import CheckReport, Finding, SizeRow


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Workers take a second to start, and have their own tests; returns what was looked at."""
    seen: list[int] = []

    def look_at_all(paths: list[str], positions: list[int], workers: int) -> Any:
        for at in positions:
            seen.append(at)
            yield [(at, inspect_file(paths[at], full=True))]

    monkeypatch.setattr(inspect_dataset, "inspect_all", look_at_all)
    return seen


def fill(root: Path, *folders: str, count: int = 12) -> Path:
    """Different pictures in each folder."""
    for folder in folders:
        for index in range(count):
            path = root / folder / f"{index:02d}.png"
            save(path, picture(zlib.crc32(f"{folder} {index}".encode()), (40, 32)))
    return root


def copy(root: Path, source: str, to: str) -> None:
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / source, root / to)


def check(root: Path | str, **options: Any) -> CheckReport:
    return check_data(DataConfig(root=str(root), **options))


def kinds(report: CheckReport) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Two classes in three splits, with nothing wrong."""
    return fill(tmp_path, *(f"{s}/{c}" for s in ("train", "val", "test") for c in ("cats", "dogs")))


def test_sound_data_has_no_findings(sound: Path) -> None:
    report = check(sound)
    assert report.findings == ()
    assert report.ok
    assert [(s.name, s.num_images, s.held_out) for s in report.splits] == [
        ("train", 24, False),
        ("val", 24, False),
        ("test", 24, False),
    ]
    assert [(c.name, c.counts) for c in report.classes] == [
        ("cats", (12, 12, 12)),
        ("dogs", (12, 12, 12)),
    ]
    assert (report.formats, report.modes) == ({"PNG": 72}, {"RGB": 72})
    assert report.sizes is not None
    assert report.sizes.median == (40, 32)


def test_an_image_in_two_classes_is_an_error_that_names_both(sound: Path) -> None:
    copy(sound, "train/cats/03.png", "train/dogs/x.png")
    report = check(sound)
    finding = kinds(report)["label_conflict"]
    assert (finding.level, finding.count) == ("error", 1)
    assert finding.examples == ("train/cats/03.png = train/dogs/x.png",)
    assert not report.ok


def test_an_image_in_two_splits_is_an_error_that_names_both(sound: Path) -> None:
    copy(sound, "train/cats/03.png", "test/cats/x.png")
    found = kinds(check(sound))
    assert found["leak"].level == "error"
    assert found["leak"].examples == ("train/cats/03.png = test/cats/x.png",)
    assert "label_conflict" not in found


def test_a_copy_in_its_own_class_is_a_warning(sound: Path) -> None:
    copy(sound, "train/cats/03.png", "train/cats/x.png")
    report = check(sound)
    assert {k: f.level for k, f in kinds(report).items()} == {"duplicate": "warning"}
    assert report.ok


def test_copies_are_found_by_pixels_not_by_bytes(sound: Path) -> None:
    with Image.open(sound / "train/cats/03.png") as image:
        image.save(sound / "train/dogs/x.bmp")
    assert kinds(check(sound))["label_conflict"].count == 1


def test_a_resized_copy_looks_alike(sound: Path) -> None:
    with Image.open(sound / "train/cats/03.png") as image:
        image.resize((60, 48)).save(sound / "val/cats/x.png")
        image.resize((60, 48)).save(sound / "train/dogs/y.jpg", quality=60)
    found = kinds(check(sound))
    assert found["near_leak"].level == "warning"
    assert "train/cats/03.png ≈ val/cats/x.png" in found["near_leak"].examples
    assert found["near_conflict"].examples == ("train/cats/03.png ≈ train/dogs/y.jpg",)


def test_the_smallest_and_largest_image_are_those_by_area(sound: Path) -> None:
    for name, size in (("wide", (400, 20)), ("tiny", (21, 21)), ("large", (100, 90))):
        Image.effect_noise(size, 50).save(sound / f"train/cats/{name}.png")
    sizes = check(sound).sizes
    assert sizes is not None
    assert (sizes.smallest, sizes.largest) == ((21, 21), (100, 90))


def test_an_exact_copy_is_not_also_one_that_looks_alike(sound: Path) -> None:
    copy(sound, "train/cats/03.png", "val/cats/x.png")
    assert set(kinds(check(sound))) == {"leak"}


# Without a val folder: what training would hold out


def test_what_training_would_hold_out_is_what_is_checked(tmp_path: Path) -> None:
    fill(tmp_path, "cats", "dogs")
    report = check(tmp_path, val_fraction=0.25)
    found = find_train_val(DataConfig(root=str(tmp_path), val_fraction=0.25), seed=0)
    assert [s.num_images for s in report.splits] == [len(found.train), len(found.val)]
    assert report.splits[1].held_out


def test_copies_on_both_sides_of_the_drawn_split_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "cats", "dogs")
    found = find_train_val(DataConfig(root=str(tmp_path)), seed=0)
    held = next(path for path in found.val.paths if path.parent.name == "cats")
    for index in range(40):  # of so many copies some are drawn to the other side
        copy(tmp_path, f"cats/{held.name}", f"cats/copy{index}.png")
    finding = kinds(check(tmp_path))["duplicate"]
    assert (finding.level, finding.count) == ("error", 40)
    assert "both sides of the split that training draws" in finding.why


def test_the_drawn_split_does_not_count_beside_the_datas_own(tmp_path: Path) -> None:
    fill(tmp_path, "train/cats", "train/dogs", "test/cats", "test/dogs")
    copy(tmp_path, "train/cats/03.png", "test/cats/x.png")
    report = check(tmp_path)
    assert [s.name for s in report.splits] == ["train", "val", "test"]
    assert kinds(report)["leak"].count == 1


def test_a_class_that_cannot_be_held_out_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "cats", "dogs")
    fill(tmp_path, "emus", count=1)
    report = check(tmp_path)
    assert "emus" in kinds(report)["split"].why
    assert not report.ok


def test_groups_are_kept_together_as_training_does(tmp_path: Path) -> None:
    fill(tmp_path, "cats", "dogs")
    options = {"group_pattern": r"(\d)\d\.png"}
    assert kinds(check(tmp_path, **options)).keys() == {"note"}
    fill(tmp_path / "two", "train/cats", "train/dogs", "val/cats", "val/dogs")
    assert kinds(check(tmp_path / "two", **options))["group_leak"].level == "error"


def test_a_group_in_train_and_test_is_an_error_where_val_is_drawn(tmp_path: Path) -> None:
    fill(tmp_path, "img", count=40)
    rows = [
        f"img/{i:02d}.png,{'ab'[i % 2]},{'test' if i % 4 < 2 else 'train'},g{i // 4}"
        for i in range(40)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,group", *rows]))
    finding = kinds(check(tmp_path / "t.csv"))["group_leak"]
    assert (finding.level, finding.count) == ("error", 10)


# What training refuses


def test_one_class_folder_is_an_error_with_trainings_hint(tmp_path: Path) -> None:
    fill(tmp_path, "photos/cats", "photos/dogs")
    report = check(tmp_path)
    assert not report.ok
    assert f"Did you mean {tmp_path / 'photos'}, with" in kinds(report)["refused"].why


def test_val_folders_without_train_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "val/cats", "val/dogs")
    assert "has a val folder but no train folder" in kinds(check(tmp_path))["refused"].why


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_table_without_train_rows_is_an_error(tmp_path: Path, split: str) -> None:
    fill(tmp_path, "img")
    rows = [f"img/{i:02d}.png,{'ab'[i % 2]},{split}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    finding = kinds(check(tmp_path / "t.csv"))["refused"]
    assert finding.level == "error"
    assert f"has a {split} split but no train split" in finding.why


def test_an_empty_val_folder_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "train/cats", "train/dogs")
    (tmp_path / "val").mkdir()
    assert f"{tmp_path / 'val'}: contains no class folders" in kinds(check(tmp_path))["refused"].why


def test_a_class_that_skipping_would_lose_is_an_error(sound: Path) -> None:
    for path in (sound / "train" / "dogs").iterdir():
        path.write_bytes(b"no picture")
    report = check(sound, on_unreadable="skip")
    assert kinds(report)["lost_class"].examples == ("train/dogs: 12 files",)
    assert not report.ok


def test_what_is_said_of_a_class_is_not_said_again_as_a_refusal(sound: Path) -> None:
    (sound / "train" / "emus").mkdir()
    assert "refused" not in kinds(check(sound))


@pytest.mark.parametrize(("inner", "level"), [(("train", "val"), "error"), ("xy", "warning")])
def test_parents_read_as_classes_are_found(
    tmp_path: Path, inner: tuple[str, str], level: str
) -> None:
    fill(tmp_path, *(f"{top}/{name}" for top in ("cats", "dogs") for name in inner))
    finding = kinds(check(tmp_path))["layout"]
    assert finding.level == level
    assert "cats, dogs are read as classes" in finding.why


def test_photos_in_formats_that_are_not_read_are_a_warning(sound: Path) -> None:
    (sound / "train/cats/1.HEIC").write_bytes(b"x")
    found = kinds(check(sound))
    assert found["other_photo"].level == "warning"
    assert found["other_photo"].examples == ("train/cats/1.HEIC",)
    assert "skipped" not in found


# Files


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_every_unreadable_file_is_named(sound: Path) -> None:
    for name, (make, _) in BROKEN.items():
        make(sound / "train" / "cats" / name)
    damage(sound / "train" / "dogs" / "damaged.png")
    report = check(sound)
    finding = kinds(report)["unreadable"]
    assert (finding.level, finding.count) == ("error", len(BROKEN))  # folder.jpg is a link
    assert report.num_readable == 72
    for name in BROKEN.keys() - {"folder.jpg"}:
        assert any(example.startswith(f"train/cats/{name}: ") for example in finding.examples)
    assert kinds(report)["link"].examples == ("train/cats/folder.jpg",)


def test_unreadable_files_that_are_skipped_are_a_warning(sound: Path) -> None:
    (sound / "train" / "cats" / "x.jpg").write_bytes(b"")
    assert kinds(check(sound, on_unreadable="skip"))["unreadable"].level == "warning"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_odd_names_are_shown_on_one_line_and_in_json(sound: Path) -> None:
    odd = [*ODD_NAMES, os.fsdecode(b"caf\xe9\n.jpg")]
    for name in odd:
        (sound / "train" / "cats" / name).write_bytes(b"x")
    report = check(sound)
    assert kinds(report)["unreadable"].count == len(odd)
    assert all(example.isprintable() for example in kinds(report)["unreadable"].examples)
    assert "'train/cats/caf\\udce9\\n.jpg': " in plain(render_check(report))
    plain(render_check(report)).encode()
    to_json(report).encode()


def test_conversions_frames_and_formats_are_noted(sound: Path) -> None:
    save(sound / "train/cats/a.tif", picture(1).convert("CMYK"))
    save(sound / "train/cats/b.png", picture(2).convert("LA"))
    frames = [picture(4).convert("P")]
    for index in range(200):
        save(sound / f"train/dogs/more{index}.png", picture(1000 + index, (8, 8)))
    save(sound / "train/cats/c.gif", picture(3).convert("P"), save_all=True, append_images=frames)
    report = check(sound)
    found = kinds(report)
    assert "1 CMYK" in found["mode"].title
    assert "1 transparent" in found["mode"].title
    assert found["frames"].examples == ("train/cats/c.gif",)
    odd = [f.title for f in report.findings if f.kind == "odd_format"]
    assert sorted(odd) == ["1 GIF among 275 images", "1 TIFF among 275 images"]


def test_what_is_skipped_is_noted(sound: Path) -> None:
    (sound / "train/cats/notes.txt").write_text("x")
    (sound / "train/.ipynb_checkpoints").mkdir()
    copy(sound, "train/cats/00.png", "train/loose.png")
    found = kinds(check(sound))
    assert set(found["skipped"].examples) == {"train/cats/notes.txt", "train/loose.png"}
    assert found["hidden"].examples == ("train/.ipynb_checkpoints",)


def test_links_are_followed_and_those_that_lead_back_are_found(sound: Path) -> None:
    fill(sound, "elsewhere/emus")
    (sound / "train/cats/more").symlink_to(sound / "elsewhere")
    (sound / "train/cats/again").symlink_to(sound / "train")
    report = check(sound)
    assert report.num_images == 84
    assert kinds(report)["link"].examples == ("train/cats/again",)


def test_photos_with_other_endings_are_a_warning(sound: Path) -> None:
    copy(sound, "train/cats/00.png", "train/cats/photo")
    found = kinds(check(sound))
    assert (found["misnamed"].level, found["misnamed"].examples) == (
        "warning",
        ("train/cats/photo",),
    )
    assert "skipped" not in found


# Classes


def test_empty_classes_and_classes_without_training_are_errors(sound: Path) -> None:
    (sound / "train" / "emus").mkdir()
    fill(sound, "val/gnus", count=1)
    found = kinds(check(sound))
    assert found["empty_class"].examples == ("train/emus",)
    assert found["class_without_training"].examples == ("val/gnus",)
    assert found["class_without_training"].level == "error"


def test_a_class_missing_from_a_split_is_a_warning(sound: Path) -> None:
    shutil.rmtree(sound / "test" / "dogs")
    finding = kinds(check(sound))["missing_class"]
    assert (finding.level, finding.examples) == ("warning", ("test/dogs",))


def test_imbalance_is_a_warning_until_it_is_handled(sound: Path) -> None:
    fill(sound, "train/dogs", count=70)
    finding = kinds(check(sound))["imbalance"]
    assert finding.level == "warning"
    assert finding.title == "dogs has 70 training images, 5.8 times the 12 of cats"
    assert kinds(check(sound, balance="weights"))["imbalance"].level == "note"


def test_few_images_are_a_warning(sound: Path) -> None:
    fill(sound, "train/emus", "val/emus", "test/emus", count=9)
    assert kinds(check(sound))["few_images"].examples == ("emus: 9",)


def test_images_below_the_networks_size_are_found_with_a_config(sound: Path) -> None:
    save(sound / "train/cats/tiny.png", picture(7, (20, 80)))
    config = Config.model_validate(
        {
            "model": {"name": "resnet18", "preprocessing": {"resize": 36, "crop": 32}},
            "data": {"root": str(sound)},
            "output_dir": "run",
        }
    )
    finding = kinds(check_data(config.data, config=config))["small"]
    assert finding.examples == ("train/cats/tiny.png: 20 x 80",)
    assert "small" not in kinds(check(sound))


# Sources


def test_a_table_is_checked_with_its_splits_and_groups(tmp_path: Path) -> None:
    fill(tmp_path, "img", count=24)
    rows = [f"img/{i:02d}.png,{'ab'[i % 2]},{'train' if i < 16 else 'val'},g{i}" for i in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,group", *rows]))
    report = check(tmp_path / "t.csv")
    assert [(s.name, s.num_images) for s in report.splits] == [("train", 16), ("val", 8)]
    copy(tmp_path, "img/00.png", "img/23.png")
    assert {"label_conflict", "leak"} <= set(kinds(check(tmp_path / "t.csv")))


def test_a_val_split_of_one_class_is_checked(tmp_path: Path) -> None:
    fill(tmp_path, "train/cats", "train/dogs", "val/cats")
    assert kinds(check(tmp_path))["missing_class"].examples == ("val/dogs",)


def test_a_folder_without_images_is_refused_as_training_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with fails("data.one_class"):
        check(tmp_path)


# Memory


def test_what_was_looked_at_is_remembered_and_a_change_is_noticed(
    sound: Path, in_this_process: list[int]
) -> None:
    check(sound)
    again = check(sound)
    assert (len(in_this_process), again.num_remembered, again.images_per_s) == (72, 72, None)
    copy(sound, "train/dogs/03.png", "train/cats/03.png")
    changed = check(sound)
    assert len(in_this_process) == 73
    assert not changed.ok


def test_fresh_looks_at_everything_again(sound: Path, in_this_process: list[int]) -> None:
    check(sound)
    check_data(DataConfig(root=str(sound)), fresh=True)
    assert len(in_this_process) == 144


def test_an_interrupted_check_goes_on_where_it_stopped(
    sound: Path, in_this_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inspect_dataset.DatasetInspection.put
    calls = 0

    def interrupted(self: inspect_dataset.DatasetInspection, at: int, look: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        real(self, at, look)

    monkeypatch.setattr(inspect_dataset.DatasetInspection, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(sound)
    assert check(sound).num_remembered == 40


# On the screen


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["finetune", "check-data", *arguments])
    code = app._run()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_exit_code_says_whether_training_would_be_wrong(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(sound, "train/cats/03.png", "train/cats/x.png")
    code, out, err = run(monkeypatch, capsys, str(sound))
    assert (code, err) == (0, "")
    assert "  1 warning: the data can be trained on.\n  Next   finetune init " in out
    copy(sound, "train/cats/03.png", "val/cats/x.png")
    code, out, err = run(monkeypatch, capsys, str(sound), "--json")
    assert (code, err) == (3, "")
    assert json.loads(out)["ok"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ROOT", "--config", "c.yaml"],
        ["ROOT", "--set", "seed=1"],
        ["new\nline"],
        ["--workers", "0", "ROOT"],
    ],
)
def test_a_wrong_command_line_is_code_2(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    check_message(err)


def test_the_report_fits_a_screen_whatever_the_number_of_classes(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *(f"train/{i:03d}" for i in range(60)),
        *(f"val/{i:03d}" for i in range(60)),
        count=1,
    )
    for index in range(60):
        copy(tmp_path, f"train/{index:03d}/00.png", f"val/{(index + 1) % 60:03d}/x.png")
    (tmp_path / "train/000/broken.jpg").write_bytes(b"")
    text = plain(render_check(check(tmp_path)), verbose=False)
    assert len(text.splitlines()) < 60
    assert "… 52 more" in text
    assert "… and 54 more; --json lists them" in text


def test_bars_show_proportions(sound: Path) -> None:
    fill(sound, "train/dogs", count=96)
    lines = plain(render_check(check(sound))).splitlines()
    cats, dogs = (next(x for x in lines if x.startswith(f"  {c}")) for c in ("cats", "dogs"))
    assert (cats.count("█"), dogs.count("█")) == (7, 24)


# The real sets


def test_the_real_sets_show_what_is_known_of_them(shared: Path) -> None:
    flowers = kinds(check(shared / "data" / "flowers5"))
    assert flowers["label_conflict"].count == 4
    assert flowers["duplicate"].count == 2
    cifar = kinds(check(shared / "data" / "cifar100"))
    assert cifar["leak"].examples == (
        "train/aquarium_fish/cichlid_fish_s_000051.png = test/aquarium_fish/cichlid_s_000047.png",
    )


def test_ten_thousand_remembered_files_are_checked_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "cats", "dogs", count=100)
    known = [inspect_file(str(path), full=True) for path in sorted(tmp_path.glob("*/*"))]
    monkeypatch.setattr(
        inspect_dataset, "inspect_all", lambda paths, at, _: ([(i, known[i % 200])] for i in at)
    )
    for name in ("cats", "dogs"):
        for index in range(5000):
            (tmp_path / name / f"more{index}.png").touch()
    start = time.perf_counter()
    assert check(tmp_path).num_images == 10_200
    assert time.perf_counter() - start < 20


def test_the_smallest_and_the_largest_image_are_those_by_area() -> None:
    sizes = np.array([(400, 533), (400, 400), (900, 100), (400, 936), (399, 469)])
    inspections: Any = SimpleNamespace(size=sizes, readable=np.arange(len(sizes)))
    assert _sizes(inspections) == SizeRow((900, 100), (399, 469), (400, 936))
