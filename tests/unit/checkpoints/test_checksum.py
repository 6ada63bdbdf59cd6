"""Tests that self-checksummed files detect flipped bits and stay readable by others."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import IO

import pytest
import torch

from finetune.checkpoints.checksum import has_valid_checksum, write_with_checksum


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    with path.open("w+b") as file:
        content = {"model": {"a": torch.arange(1000.0)}, "metadata": "{}"}
        write_with_checksum(file, lambda archive: torch.save(content, archive))
    return path


def check(path: Path) -> bool | None:
    with path.open("rb") as file:
        return has_valid_checksum(file)


def test_a_sealed_file_is_whole(sealed: Path) -> None:
    assert check(sealed) is True


def test_torch_and_zip_read_it_as_any_other(sealed: Path) -> None:
    content = torch.load(sealed, weights_only=True)
    assert torch.equal(content["model"]["a"], torch.arange(1000.0))
    assert torch.load(sealed, weights_only=True, mmap=True)["metadata"] == "{}"
    with zipfile.ZipFile(sealed) as archive:
        assert archive.comment.startswith(b"finetune sha256 ")
        assert archive.testzip() is None


def test_every_flipped_bit_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    rng = random.Random(0)
    tail = range(8 * (len(content) - 120), 8 * len(content))  # in the seal itself, every one
    body = [rng.randrange(8 * len(content)) for _ in range(200)]
    for bit in (*tail, *body):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        assert has_valid_checksum(io.BytesIO(broken)) is not True, bit


@pytest.mark.parametrize("cut", [1, 2, 50, 82, 83, 500])
def test_a_file_cut_short_is_not_whole(sealed: Path, cut: int) -> None:
    sealed.write_bytes(sealed.read_bytes()[:-cut])
    assert check(sealed) is not True


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 1000])
def test_a_file_without_a_seal_is_known_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert check(tmp_path / "x") is None


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 3, 0, 2], [0, 5, 1, 1], [2, 2, 2], [100, 1]])
def test_the_hash_does_not_depend_on_how_the_bytes_come(tmp_path: Path, sizes: list[int]) -> None:
    def write_in_pieces(archive: IO[bytes]) -> None:
        for size in sizes:
            archive.write(b"a" * size)
        archive.write(b"\0")
        archive.write(b"\0")

    path = tmp_path / "x"
    with path.open("w+b") as file:
        write_with_checksum(file, write_in_pieces)
    assert check(path) is True
    assert path.read_bytes().startswith(b"a" * sum(sizes))
