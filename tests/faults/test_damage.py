"""Tests that flipped bits and truncation of checkpoints and caches are detected."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.broken_files import cut, picture, save
from helpers.counting import Count, times
from helpers.feature_rows import fill, missing_from, opened, wrong_rows
from helpers.small_checkpoint import save_small

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.config.schema import Config
from finetune.core.errors import CheckpointError
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.checks.inspection_cache import (
    InspectionCache,
    inspection_cache_file,
    key_of_file,
)
from finetune.features import row_index

Make = Callable[..., Config]
FLIPS, CUTS = times("FLIPS", 100), times("CUTS", 20)
CACHE_FLIPS, CACHE_CUTS = times("CACHE_FLIPS", 150), times("CACHE_CUTS", 25)


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def shortened(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


Damage = Callable[[bytes, random.Random], bytes]


# A checkpoint


@pytest.fixture
def checkpoint(make_config: Make, tmp_path: Path) -> Path:
    return save_small(tmp_path / "kept" / "best.pt", make_config())


def unnoticed(path: Path, damage: Damage, tries: int) -> list[int]:
    """The tries after which something else was loaded than what was saved."""
    whole = path.read_bytes()
    state, metadata = load_checkpoint(path)
    lost = []
    for number in range(tries):
        path.write_bytes(damage(whole, random.Random(f"{damage.__name__} {number}")))
        with contextlib.suppress(CheckpointError):
            other, same = load_checkpoint(path)
            equal = other.keys() == state.keys() and all(
                torch.equal(tensor, other[name]) for name, tensor in state.items()
            )
            if not equal or same != metadata:
                lost.append(number)
    path.write_bytes(whole)
    return lost


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(checkpoint: Path, count: Count) -> None:
    lost = unnoticed(checkpoint, flipped, FLIPS)
    count("checkpoint-flips", tried=FLIPS, held=FLIPS - len(lost))
    assert not lost


def test_a_checkpoint_without_its_end_is_noticed(checkpoint: Path, count: Count) -> None:
    lost = unnoticed(checkpoint, shortened, CUTS)
    count("checkpoint-cuts", tried=CUTS, held=CUTS - len(lost))
    assert not lost


# Stored features

ROWS = list(range(50))


@pytest.mark.parametrize(
    "name", ["0.bin", "1.bin", "keys.bin", "blocks.bin", "index.bin", "meta.json"]
)
@pytest.mark.parametrize(
    ("damage", "promise", "tries"),
    [(flipped, "cache-flips", CACHE_FLIPS), (shortened, "cache-cuts", CACHE_CUTS)],
)
def test_damaged_features_are_computed_again_and_never_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: Count,
    name: str,
    damage: Damage,
    promise: str,
    tries: int,
) -> None:
    monkeypatch.setattr(row_index, "_FEWEST_ROWS", 16)
    folder = tmp_path / "store"
    store = opened(folder)
    fill(store, ROWS)
    store.save_index()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    lost = []
    for number in range(tries):
        rng = random.Random(f"{name} {number}")
        (folder / name).write_bytes(damage(files[folder / name], rng))
        store = opened(folder)
        wrong = wrong_rows(store, ROWS)
        noticed = store.damaged or missing_from(store, ROWS)
        fill(store, ROWS)
        again = opened(folder)
        repaired = not missing_from(again, ROWS) and not wrong_rows(again, ROWS)
        # The index and the description say nothing about values.
        if wrong or not repaired or (name[0].isdigit() and not noticed):
            lost.append(number)
        for path, content in files.items():
            path.write_bytes(content)
    count(promise, tried=tries, held=tries - len(lost))
    assert not lost


# What was found out about photos


@pytest.fixture
def looked_at(tmp_path: Path) -> Iterator[list[str]]:
    """Photos, every fourth of them cut short, and what is known of them."""
    makers = [cut, save, save, save]
    paths = [str(makers[i % 4](tmp_path / f"{i}.jpg")) for i in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with InspectionCache() as remembered:
            remembered.keep((key_of_file(path), inspect_file(path, full=True)) for path in paths)
        yield paths


@pytest.mark.parametrize("damage", [flipped, shortened])
def test_a_damaged_memory_of_photos_is_never_wrong(
    looked_at: list[str], damage: Damage, count: Count
) -> None:
    keys = [key_of_file(path) for path in looked_at]
    right = {key: inspect_file(path, full=True) for key, path in zip(keys, looked_at, strict=True)}
    whole = inspection_cache_file().read_bytes()
    lost = []
    for number in range(CACHE_FLIPS):
        inspection_cache_file().write_bytes(damage(whole, random.Random(number)))
        for beside in inspection_cache_file().parent.glob("looks.sqlite-*"):
            beside.unlink()
        with InspectionCache() as remembered:
            found = remembered.find(keys)
            remembered.keep([(b"another", inspect_file(looked_at[1], full=True))])
        if any(right.get(key) != look for key, look in found.items()):
            lost.append(number)
    count("looks-damage", tried=CACHE_FLIPS, held=CACHE_FLIPS - len(lost))
    assert not lost


def test_a_memory_of_photos_from_elsewhere_is_not_believed(looked_at: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(inspection_cache_file())) as database, database:
        database.execute("UPDATE looks_5 SET reason = 'is empty: 0 bytes'")
    with InspectionCache() as remembered:
        assert remembered.find([key_of_file(path) for path in looked_at]) == {}


def test_damage_changes_bytes() -> None:
    content = picture(0).tobytes()
    assert flipped(content, random.Random(0)) != content
    assert len(shortened(content, random.Random(0))) < len(content)
