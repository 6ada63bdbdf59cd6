"""Tests of atomic file writes and their errors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from helpers.messages import fails

from finetune.core.errors import OutputError
from finetune.core.files import append_line, write_atomically, write_text


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that is there already."""
    path = tmp_path / "best.pt"
    path.write_bytes(b"old")
    return path


@pytest.fixture
def umask() -> Iterator[int]:
    """A umask that shuts out others and keeps the group from writing."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def failing(error: BaseException, file: IO[bytes]) -> None:
    """What a writer does that breaks half way."""
    file.write(b"half of the new")
    raise error


def test_content_replaces_what_was_there(old: Path) -> None:
    write_atomically(old, lambda file: file.write(b"new"))
    assert old.read_bytes() == b"new"


def test_only_the_file_itself_remains(old: Path) -> None:
    write_atomically(old, lambda file: file.write(b"new"))
    assert list(old.parent.iterdir()) == [old]


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@pytest.mark.usefixtures("umask")
def test_the_umask_itself_is_left_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640


def test_text_is_utf8_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é 日本\n")
    assert (tmp_path / "a.txt").read_bytes() == "é 日本\n".encode()


FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TORCH_FULL_DISK = RuntimeError("PytorchStreamWriter failed writing file data/0\nframe #0: ...")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL_DISK, os.strerror(errno.ENOSPC)),
        (TORCH_FULL_DISK, "PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_failed_write_names_the_file_and_the_reason_on_one_line(
    old: Path, error: Exception, reason: str
) -> None:
    with pytest.raises(OutputError) as caught:
        write_atomically(old, lambda file: failing(error, file))
    assert str(caught.value) == f"{old}: cannot be written: {reason}"


@pytest.mark.parametrize("error", [OSError(), RuntimeError()])
def test_a_failure_without_a_text_is_an_output_error_too(old: Path, error: Exception) -> None:
    with pytest.raises(OutputError):
        write_atomically(old, lambda file: failing(error, file))


@pytest.mark.parametrize(
    "error", [FULL_DISK, TORCH_FULL_DISK, ValueError("x"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_old_file_and_no_other(old: Path, error: BaseException) -> None:
    with pytest.raises((OutputError, type(error))):
        write_atomically(old, lambda file: failing(error, file))
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_a_mistake_of_the_writer_is_not_disguised_as_a_full_disk(old: Path) -> None:
    with pytest.raises(ValueError, match="a mistake"):
        write_atomically(old, lambda file: failing(ValueError("a mistake"), file))


def test_a_disk_that_fills_up_while_syncing_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise FULL_DISK

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError):
        write_atomically(old, lambda file: file.write(b"new"))
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_the_content_is_synced_before_it_takes_the_name(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_sync: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: at_sync.append(old.read_bytes()))
    write_atomically(old, lambda file: file.write(b"new"))
    assert at_sync[0] == b"old"


def test_writing_into_no_folder_is_refused(tmp_path: Path) -> None:
    with fails("output.unwritable"):
        write_text(tmp_path / "gone" / "a.txt", "x")


def test_writing_over_a_folder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(OutputError):
        write_text(tmp_path / "best.pt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    for line in ("one", "two é"):
        append_line(tmp_path / "metrics.jsonl", line)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == "one\ntwo é\n"


def test_appending_to_a_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        append_line(tmp_path, "x")
    assert str(tmp_path) in str(caught.value)
