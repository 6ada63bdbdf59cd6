"""Tests of write errors: full, limited, closed or missing disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from helpers.counting import Count, times
from helpers.faulty_disk import BROKEN, FULL, Disk, faulty
from helpers.messages import fails
from helpers.own_disk import run_on_own_disk
from helpers.paths import HELPERS
from helpers.small_checkpoint import few_tensors, save_small, small_checkpoint

from finetune.checkpoints.checkpoint import Metadata, save_checkpoint
from finetune.cli import app, support
from finetune.commands.train import train
from finetune.config.load import to_yaml
from finetune.config.schema import Config
from finetune.core.errors import FinetuneError, OutputError
from finetune.core.files import append_line, sha256_of
from finetune.core.reporter import SilentReporter

Make = Callable[..., Config]
T = TypeVar("T")
TENSORS = times("FAULT_TENSORS", 4)
LIMITS = times("FAULT_LIMITS", 40)


@pytest.fixture
def metadata(make_config: Make) -> Metadata:
    return small_checkpoint(make_config())[1]


@pytest.fixture
def old(tmp_path: Path, metadata: Metadata) -> Path:
    """A folder's good checkpoint, and nothing else in it."""
    path = tmp_path / "kept" / "best.pt"
    path.parent.mkdir()
    save_checkpoint(path, few_tensors(TENSORS, 1.0), metadata)
    return path


@dataclass(frozen=True)
class Before:
    """What must be the same afterwards."""

    sha256: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Before:
        return cls(sha256_of(path), tuple(sorted(p.name for p in path.parent.iterdir())))


def is_one_line(error: FinetuneError, path: Path, number: int) -> bool:
    return str(error) == f"{path}: cannot be written: {os.strerror(number)}"


@pytest.mark.parametrize(("number", "once"), [(FULL, False), (BROKEN, True)])
def test_a_fault_at_any_operation_of_a_save_keeps_the_old_checkpoint(
    old: Path,
    metadata: Metadata,
    monkeypatch: pytest.MonkeyPatch,
    count: Count,
    number: int,
    once: bool,
) -> None:
    before = Before.of(old)
    new = few_tensors(TENSORS, 2.0)
    lost: list[str] = []
    disk = Disk(at=0, error=number, once=once)
    for at in range(1, 10_000):
        disk = Disk(at=at, error=number, once=once)
        try:
            with faulty(monkeypatch, disk):
                save_checkpoint(old, new, metadata)
        except OutputError as error:
            if Before.of(old) != before or not is_one_line(error, old, number):
                lost.append(f"{disk.operations[-1]}, operation {at}: {error}")
        else:
            if not disk.failed:
                break  # the whole save passed
            # Only what no longer matters may fail in silence: the folder's own sync.
            if disk.operations[at - 1] != "fsync":
                lost.append(f"{disk.operations[at - 1]}, operation {at}: not said")
            save_checkpoint(old, few_tensors(TENSORS, 1.0), metadata)
            before = Before.of(old)
    assert {"create", "write", "flush", "fsync", "replace"} <= set(disk.operations)
    count("write-faults", tried=at - 1, held=at - 1 - len(lost))
    assert not lost
    assert Before.of(old).names == before.names
    assert Before.of(old).sha256 != before.sha256


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond it: the system itself refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_size_limit_anywhere_in_a_save_keeps_the_old_checkpoint(
    old: Path, metadata: Metadata, count: Count
) -> None:
    before, size = Before.of(old), old.stat().st_size
    new = few_tensors(TENSORS, 2.0)
    limits = sorted({0, 1, size - 1, *(size * i // LIMITS for i in range(LIMITS))})
    lost: list[str] = []
    for limit in limits:
        try:
            with file_size_limit(limit):
                save_checkpoint(old, new, metadata)
        except OutputError as error:
            if Before.of(old) != before or not is_one_line(error, old, errno.EFBIG):
                lost.append(f"{limit} bytes: {error}")
        else:
            lost.append(f"{limit} bytes: not said")
    count("file-size-limits", tried=len(limits), held=len(limits) - len(lost))
    assert not lost
    with file_size_limit(2 * size):
        save_checkpoint(old, new, metadata)
    assert Before.of(old) != before


def test_a_real_disk_that_is_full_by_pages_keeps_the_old_checkpoint(
    tmp_path: Path, count: Count
) -> None:
    program = HELPERS / "full_disk.py"
    done = run_on_own_disk(program, tmp_path / "disk", "fill", size="2m")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    count("full-disk", tried=found["tried"], held=found["tried"] - len(found["lost"]))
    assert found["tried"] > 5
    assert not found["lost"]
    (said,) = found["said"]
    assert said.endswith(f"best.pt: cannot be written: {os.strerror(errno.ENOSPC)}")


@pytest.mark.parametrize("limit", [0, 3, 8, 11])
def test_a_line_that_does_not_fit_leaves_no_half(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, "1234567")
    with file_size_limit(limit), pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
        append_line(path, "7654321")
    assert path.read_text() == "1234567\n"


# Whole commands

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line within this process: its code, and what it says on stderr."""
    monkeypatch.setattr(support, "debug_is_on", False)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        return app._run(), capsys.readouterr().err

    return run


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> str:
    path = tmp_path / "pets.yaml"
    runtime = {"precision": "float32", "memory_format": "contiguous"}
    path.write_text(to_yaml(make_config(train={"epochs": 1}, runtime=runtime)))
    return str(path)


def strays(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            1_000,
            "features cannot be cached: File too large; choose another folder with --set features",
        ),
        (400_000, ".pt: cannot be written: File too large"),
    ],
)
def test_training_on_a_disk_with_too_little_room_is_code_6_and_leaves_no_half_file(
    run: Run, config_file: str, tmp_path: Path, own_cache: Path, limit: int, said: str
) -> None:
    with file_size_limit(limit):
        code, err = run("train", "--config", config_file)
    assert code == 6
    assert said in last_line(err)
    assert last_line(err).startswith("finetune: ")
    assert "Traceback" not in err
    assert not strays(tmp_path)
    assert not strays(own_cache)
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize("command", ["eval --calibrate", "report", "export --format safetensors"])
def test_a_command_that_cannot_write_keeps_what_there_was(
    run: Run, make_config: Make, photos: Path, command: str
) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    folder = Path(config.output_dir)
    run("report", str(folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    name, *options = command.split()
    with file_size_limit(1_000):
        code, err = run(name, str(folder), *options)
    assert code == 6
    assert os.strerror(errno.EFBIG) in last_line(err)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_closed_to_writing_is_code_6(tmp_path: Path, config_file: str) -> None:
    program = HELPERS / "full_disk.py"
    done = run_on_own_disk(program, tmp_path / "disk", "read-only", config_file, size="2m")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["output_dir"]["code"] == answers["features.dir"]["code"] == 6
    assert last_line(answers["output_dir"]["said"]).endswith("cannot be written")
    assert os.strerror(errno.EROFS) in last_line(answers["features.dir"]["said"])
    assert "Traceback" not in done.stderr


def test_a_standard_output_that_is_full_is_code_6(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for arguments in (["--help"], ["--version"], ["models", "resnet18"]):
        full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails as well
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            code, err = run(*arguments)
        with suppress(OSError):
            full.close()
        assert code == 6
        assert last_line(err).startswith("finetune: ")


# Data that goes away


class Removing(SilentReporter):
    """Removes something of the user's after the first batch of something."""

    def __init__(self, gone: Path, during: str) -> None:
        self.gone = gone
        self.during = during

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        for number, item in enumerate(items):
            yield item
            if description.startswith(self.during) and number == 0:
                shutil.rmtree(self.gone, ignore_errors=True)

    def say(self, text: str, *, good: bool = False) -> None:
        if self.during in text:
            shutil.rmtree(self.gone, ignore_errors=True)

    def detail(self, text: str) -> None:
        self.say(text)


def test_photos_that_vanish_in_an_epoch_are_a_data_error_and_the_run_keeps_its_last_epoch(
    make_config: Make, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.features.engine.spare_memory_bytes", lambda: 0
    )  # keep none decoded
    config = make_config(augment={"policy": "crop_flip"}, train={"epochs": 3})
    with fails("data.became_unreadable") as caught:
        train(config, reporter=Removing(photos, "epoch 2/3"))
    assert caught.value.exit_code == 3
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]
    assert (Path(config.output_dir) / "last.pt").exists()


@pytest.mark.parametrize("known_by", ["time", "content"])
def test_photos_that_vanish_before_their_features_are_computed_are_a_data_error(
    make_config: Make, photos: Path, known_by: str
) -> None:
    config = make_config(features={"known_by": known_by})
    with fails("data.became_unreadable"):
        train(config, reporter=Removing(photos, "frozen tensors hashed"))
    assert not Path(config.output_dir).exists()


def test_photos_whose_features_are_kept_may_vanish(make_config: Make, photos: Path) -> None:
    config = make_config(train={"epochs": 2})
    assert train(config, reporter=Removing(photos, "epoch 1/2")).epochs == 2


def test_a_run_folder_that_vanishes_is_an_output_error(make_config: Make) -> None:
    config = make_config(train={"epochs": 2})
    with fails("output.unwritable") as caught:
        train(config, reporter=Removing(Path(config.output_dir), "epoch 1/2"))
    assert caught.value.exit_code == 6


def test_a_photo_that_vanishes_before_its_picture_is_drawn_is_a_data_error(
    run: Run, make_config: Make, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    from finetune.commands import report

    def gone(path: Path, *_: object) -> object:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(report, "read_photo", gone)
    code, err = run("report", config.output_dir)
    assert code == 3
    assert "cannot be read any more (No such file" in last_line(err)


def test_calibrating_a_checkpoint_that_was_only_read_writes_nothing_else(
    run: Run, make_config: Make
) -> None:
    path = save_small(Path(make_config().output_dir) / "best.pt", make_config())
    before = sha256_of(path)
    assert run("eval", str(path))[0] == 0
    assert sha256_of(path) == before
