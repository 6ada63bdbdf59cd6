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
from finetune.features.store import FeatureStore, Layout

Make = Callable[..., Config]
FLIPS, CUTS = times("FLIPS", 100), times("CUTS", 20)
CACHE_FLIPS, CACHE_CUTS = times("CACHE_FLIPS", 300), times("CACHE_CUTS", 50)


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

LAYOUT = Layout(rows=50, shapes=((7,), (2, 3)), dtype="float32", block_rows=8)
DESCRIPTION = {"identity": "x", "views": "flip 2", "root": "/photos"}


def features(block: int) -> list[torch.Tensor]:
    """What is computed for a block."""
    rows = LAYOUT.rows_of(block)
    numbers = torch.arange(rows.start, rows.stop, dtype=torch.float32)
    return [numbers[:, None] + torch.arange(7) / 7, numbers[:, None, None] - torch.ones(2, 3)]


def fill(store: FeatureStore) -> None:
    for block in store.missing:
        store.put(block, features(block))


def wrong_rows(store: FeatureStore) -> int:
    """Blocks that the store calls whole and that are not what was computed."""
    missing = set(store.missing)
    return sum(
        any(
            not torch.equal(tensor[LAYOUT.rows_of(block)], right)
            for tensor, right in zip(store.tensors, features(block), strict=True)
        )
        for block in range(LAYOUT.num_blocks)
        if block not in missing
    )


@pytest.mark.parametrize("name", ["0.bin", "1.bin", "blocks.log", "meta.json"])
@pytest.mark.parametrize(
    ("damage", "promise", "tries"),
    [(flipped, "cache-flips", CACHE_FLIPS), (shortened, "cache-cuts", CACHE_CUTS)],
)
def test_damaged_features_are_computed_again_and_never_wrong(
    tmp_path: Path, count: Count, name: str, damage: Damage, promise: str, tries: int
) -> None:
    folder = tmp_path / "store"
    fill(FeatureStore(LAYOUT, folder, DESCRIPTION))
    path = folder / name
    whole = path.read_bytes()
    lost = []
    for number in range(tries):
        path.write_bytes(damage(whole, random.Random(f"{name} {number}")))
        store = FeatureStore(LAYOUT, folder, DESCRIPTION)
        noticed = bool(store.damaged or store.missing)
        wrong = wrong_rows(store)
        fill(store)
        again = FeatureStore(LAYOUT, folder, DESCRIPTION)
        repaired = not again.missing and not wrong_rows(again)
        # The log's blank lines, and where the photos lay, say nothing about values.
        if wrong or not repaired or (name.endswith(".bin") and not noticed):
            lost.append(number)
        path.write_bytes(whole)
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
        database.execute("UPDATE looks_3 SET reason = 'is empty: 0 bytes'")
    with InspectionCache() as remembered:
        assert remembered.find([key_of_file(path) for path in looked_at]) == {}


def test_damage_changes_bytes() -> None:
    content = picture(0).tobytes()
    assert flipped(content, random.Random(0)) != content
    assert len(shortened(content, random.Random(0))) < len(content)
