"""Tests of the check before each run, and of unreadable files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.broken_files import BROKEN, ODD_NAMES, cut, picture, save
from helpers.messages import check_error, fails
from helpers.reporters import RecordingReporter

from finetune.commands.check_data import check_data
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.schema import Config, DataConfig
from finetune.core.errors import DataError, UnreadableError
from finetune.core.reporter import SilentReporter
from finetune.data.checks import preflight as module
from finetune.data.checks.inspect_file import FileInspection, inspect_file
from finetune.data.checks.preflight import PreflightResult, dropping_unreadable, preflight_check
from finetune.data.images import Images
from finetune.data.loading import dataloader

Make = Callable[..., Config]


def images_in(folder: Path, class_names: tuple[str, ...] = ("a", "b")) -> Images:
    """Every file of the folder's classes."""
    paths = [path for name in class_names for path in sorted((folder / name).iterdir())]
    labels = tuple(class_names.index(path.parent.name) for path in paths)
    return Images(tuple(paths), labels, class_names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate("ab"):
        for index in range(4):
            save(tmp_path / name / f"{index}.png", picture(10 * label + index))
    return tmp_path


def check(*parts: Images, base: Path, on_unreadable: str = "fail") -> PreflightResult:
    return preflight_check(
        *parts, on_unreadable=on_unreadable, base=base, reporter=SilentReporter()
    )


def refusal(folder: Path, on_unreadable: str = "fail") -> DataError:
    with pytest.raises(DataError) as caught:
        check(images_in(folder), base=folder, on_unreadable=on_unreadable)
    check_error(caught.value)
    return caught.value


def test_sound_files_are_one_line(folder: Path) -> None:
    checked = check(images_in(folder), base=folder)
    assert checked.verdict.startswith("checked 8 images (8 for the first time) in 0.")
    assert "all can be read; `finetune check-data` decodes them" in checked.verdict
    assert (checked.skipped, checked.worrying) == ((), False)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_all_files_that_cannot_be_read_are_named_at_once(folder: Path) -> None:
    for name, (make, _) in BROKEN.items():
        make(folder / "a" / name)
    lines = str(refusal(folder)).splitlines()
    assert lines[0] == f"{folder}: {len(BROKEN)} of {8 + len(BROKEN)} files cannot be read"
    assert lines[-1] == "Repair or remove them, or set data.on_unreadable: skip"
    assert all(any(f"  a/{name}: " in line for line in lines) for name in BROKEN)


def test_a_long_list_is_bounded_and_counted(folder: Path) -> None:
    for index in range(100):
        (folder / "a" / f"x{index}.jpg").touch()
    lines = str(refusal(folder)).splitlines()
    assert len(lines) == 23
    assert lines[-2] == "  … and 80 more; `finetune check-data --json` lists them all"


def test_one_file_is_one_line(folder: Path) -> None:
    cut(folder / "a" / "x.jpg")
    error = refusal(folder)
    assert error.kind == "data.undecodable"
    assert "\n" not in str(error)


def test_skip_leaves_them_out_and_says_so(folder: Path) -> None:
    cut(folder / "a" / "x.jpg")
    checked = check(images_in(folder), base=folder, on_unreadable="skip")
    assert [path.name for path, _ in checked.skipped] == ["x.jpg"]
    assert len(checked.parts[0]) == 8
    assert folder / "a" / "x.jpg" not in checked.parts[0].paths
    assert "1 cannot be read and is left out" in checked.verdict
    assert checked.worrying


def test_skip_never_loses_a_class(folder: Path) -> None:
    for path in (folder / "b").iterdir():
        path.write_bytes(b"")
    assert refusal(folder, "skip").kind == "data.class_unreadable"


def test_a_known_file_is_not_looked_at_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(images_in(folder), base=folder)
    monkeypatch.setattr(module, "inspect_file", None)
    assert "checked 8 images in " in check(images_in(folder), base=folder).verdict


def test_a_file_that_breaks_later_is_noticed(folder: Path) -> None:
    check(images_in(folder), base=folder)
    cut(folder / "a" / "1.png")
    assert refusal(folder).kind == "data.undecodable"


def test_many_files_are_looked_at_in_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    cut(folder / "b" / "x.jpg")
    checked = check(images_in(folder), base=folder, on_unreadable="skip")
    assert [path.name for path, _ in checked.skipped] == ["x.jpg"]


def remember(folder: Path) -> None:
    """Fill the inspection cache as check-data does."""
    paths = sorted(str(path) for path in folder.glob("*/*"))
    with module.InspectionCache() as remembered:
        remembered.keep((module.key_of_file(path), inspect_file(path, full=True)) for path in paths)


def test_what_check_data_knows_is_said(folder: Path) -> None:
    remember(folder)
    checked = check(images_in(folder), base=folder)
    assert checked.verdict.endswith("no copies in two classes")
    save(folder / "b" / "copy.png", picture(0))
    remember(folder)
    checked = check(images_in(folder), images_in(folder), base=folder)
    assert "but 9 validation images are also in the training split and 1 " in checked.verdict
    assert checked.worrying


def test_a_file_that_check_data_found_broken_is_refused(folder: Path) -> None:
    path = folder / "a" / "1.png"
    with module.InspectionCache() as remembered:
        look = FileInspection(reason="broken within", decoded=True)
        remembered.keep([(module.key_of_file(str(path)), look)])
    assert refusal(folder).kind == "data.undecodable"


# In a run


def test_a_run_stops_before_it_begins(make_config: Make, photos: Path) -> None:
    (photos / "train" / "class_0" / "broken.jpg").write_bytes(b"no photo")
    (photos / "val" / "class_1" / "empty.png").touch()
    config = make_config()
    with fails("data.undecodable", path="photos"):
        train(config)
    assert not Path(config.output_dir).exists()


def test_a_run_that_skips_lists_what_it_left_out_and_eval_leaves_it_out_as_well(
    make_config: Make, photos: Path
) -> None:
    names = [*ODD_NAMES, "broken.jpg"] if sys.platform != "win32" else ["broken.jpg"]
    for name in names:
        (photos / "train" / "class_0" / name).write_bytes(b"no photo")
        (photos / "val" / "class_0" / name).write_bytes(b"no photo")
    config = make_config(data={"on_unreadable": "skip"}, train={"epochs": 1})
    summary = train(config)
    assert (summary.num_train, summary.num_val) == (18, 10)
    with (Path(config.output_dir) / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == set(names)
    assert all("is text, not an image" in row["reason"] for row in rows)
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert (result.num_images, result.top1) == (10, summary.val.top1)


def test_the_drawn_split_is_written_and_skipping_does_not_change_it(
    make_config: Make, photos: Path, tmp_path: Path
) -> None:
    def split(name: str) -> dict[str, str]:
        config = make_config(
            data={"root": str(photos / "train"), "on_unreadable": "skip"},
            train={"epochs": 1},
            output_dir=str(tmp_path / name),
        )
        train(config)
        with (tmp_path / name / "split.csv").open(encoding="utf-8", newline="") as file:
            return {row["path"]: row["split"] for row in csv.DictReader(file)}

    before = split("before")
    assert sorted(before.values()).count("val") == 4
    assert before.keys() == {f"class_{c}/{i}.png" for c in range(2) for i in range(9)}
    broken = next(path for path, side in before.items() if side == "train")
    (photos / "train" / broken).write_bytes(b"")
    assert split("after") == {path: side for path, side in before.items() if path != broken}


def test_a_written_split_is_a_table_that_repeats_it(
    make_config: Make, photos: Path, tmp_path: Path
) -> None:
    config = make_config(data={"root": str(photos / "train")}, train={"epochs": 1})
    summary = train(config)
    table = photos / "train" / "split.csv"
    table.write_bytes((Path(config.output_dir) / "split.csv").read_bytes())
    again = make_config(
        data={"root": str(table)}, train={"epochs": 1}, output_dir=str(tmp_path / "again")
    )
    assert train(again).val == summary.val


def test_check_data_and_a_run_share_what_they_know(make_config: Make, photos: Path) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    assert check_data(DataConfig(root=str(photos))).num_remembered == 0  # a quick look knows less
    reporter = RecordingReporter()
    train(config, overwrite=True, reporter=reporter)
    assert any("checked 28 images in " in line for line in (*reporter.said, *reporter.warned))


def break_in_the_middle(path: Path) -> None:
    """Damage that no look at the header and the end finds."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_images_that_pass_the_check_and_are_broken_are_all_named(
    make_config: Callable[..., Config], photos: Path, cache: str
) -> None:
    for name in ("0.png", "1.png"):
        break_in_the_middle(photos / "train" / "class_0" / name)
    config = make_config(features={"cache": cache}, data={"batch_size": 30}, train={"epochs": 1})
    with fails("data.undecodable") as caught:
        train(config)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_such_images_are_skipped_and_listed_where_that_is_wanted(
    make_config: Callable[..., Config], photos: Path, cache: str
) -> None:
    broken = photos / "train" / "class_0" / "0.png"
    break_in_the_middle(broken)
    config = make_config(
        features={"cache": cache}, data={"on_unreadable": "skip"}, train={"epochs": 1}
    )
    assert train(config).num_train == 17
    assert str(broken) in (Path(config.output_dir) / "skipped.csv").read_text()


def test_evaluation_skips_such_images_as_well(
    make_config: Callable[..., Config], photos: Path
) -> None:
    config = make_config(data={"on_unreadable": "skip"}, train={"epochs": 1})
    train(config)
    break_in_the_middle(photos / "val" / "class_0" / "0.png")
    assert evaluate_checkpoint(Path(config.output_dir) / "best.pt").num_images == 9


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        DeprecationWarning("will be removed in a future release"),
        OSError("broken data stream when reading image file"),
    ],
)
def test_a_sound_photo_that_fails_to_decode_in_a_run_is_neither_skipped_nor_remembered(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = dataloader.read_photo

    def failing(path: Path, *levels: int | None) -> object:
        if path.name == "0.png":
            raise error
        return real(path, *levels)

    config = make_config(data={"on_unreadable": "skip"}, train={"epochs": 1})
    monkeypatch.setattr(dataloader, "read_photo", failing)
    with pytest.raises(UnreadableError) as caught:
        train(config)
    assert {path.name for path in caught.value.passing} == {"0.png"}
    monkeypatch.setattr(dataloader, "read_photo", real)
    assert train(config).num_train == 18


@pytest.mark.parametrize("on_unreadable", ["fail", "skip"])
def test_photos_that_the_machine_fails_at_are_not_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, on_unreadable: str
) -> None:
    fault = FileInspection(
        reason="needs more memory than there is", lasting=False, machine_fault=True
    )
    monkeypatch.setattr(module, "inspect_file", lambda path, *, full: fault)
    error = refusal(folder, on_unreadable)
    assert error.kind == "data.machine_fault"
    assert "on_unreadable" not in str(error)
    monkeypatch.undo()
    assert "all can be read" in check(images_in(folder), base=folder).verdict


def test_a_photo_that_the_system_refuses_for_once_is_not_left_out(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dataloader.read_photo

    def refused(path: Path, *levels: int | None) -> object:
        if path.name == "0.png":
            raise OSError(24, "Too many open files")
        return real(path, *levels)

    config = make_config(data={"on_unreadable": "skip"}, train={"epochs": 1})
    monkeypatch.setattr(dataloader, "read_photo", refused)
    with fails("data.became_unreadable"):
        train(config)
    monkeypatch.setattr(dataloader, "read_photo", real)
    assert train(config).num_train == 18


def test_a_file_that_is_completed_during_its_inspection_is_not_remembered_as_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images_in(folder).paths[0]
    whole = path.read_bytes()
    cut(path)

    def completed_afterwards(name: str, *, full: bool) -> FileInspection:
        look = inspect_file(name, full=full)
        path.write_bytes(whole)
        return look

    def work(attempt: int) -> None:
        raise UnreadableError([(path, "broken")])

    monkeypatch.setattr(module, "inspect_file", completed_afterwards)
    with pytest.raises(UnreadableError):
        dropping_unreadable(work, on_unreadable="fail", reporter=SilentReporter())
    monkeypatch.setattr(module, "inspect_file", inspect_file)
    assert "all can be read" in check(images_in(folder), base=folder).verdict
