"""The store gives back the rows that were put in, or none: never another photo's, never damaged."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.feature_rows import (
    LAYOUT,
    append,
    features_of,
    fill,
    keys_of,
    missing_from,
    opened,
    wrong_rows,
)

from finetune.features import cache_folder, row_index
from finetune.features.cache_folder import make_room, remove, remove_unreadable, stored
from finetune.features.photo_keys import numbered
from finetune.features.store import DiskStore, MemoryStore

SOME = list(range(20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


def filled(folder: Path) -> DiskStore:
    store = opened(folder)
    fill(store, SOME)
    return store


def test_rows_are_found_by_key_in_any_order(folder: Path) -> None:
    store = filled(folder)
    asked = [19, 0, 4, 99, 4]
    places = store.find(keys_of(asked))
    assert places[3] == -1
    rows = torch.from_numpy(places[places >= 0])
    for tensor, right in zip(store.tensors(), features_of([19, 0, 4, 4]), strict=True):
        assert torch.equal(tensor[rows], right)


def test_a_store_is_whole_when_opened_again(folder: Path) -> None:
    filled(folder)
    again = opened(folder)
    assert not missing_from(again, SOME)
    assert not wrong_rows(again, SOME)
    assert not again.damaged


def test_rows_in_memory_are_found_by_their_number() -> None:
    store = MemoryStore(LAYOUT, 4)
    keys = numbered(4)
    store.append(keys[[2, 0]], np.zeros(2, np.uint64), features_of([2, 0]))
    assert store.find(keys).tolist() == [0, -1, 2, -1]
    assert torch.equal(store.tensors()[0][[0, 2]], features_of([0, 2])[0])


def test_a_store_that_grows_step_by_step_holds_what_one_filled_at_once_holds(folder: Path) -> None:
    numbers = list(range(200))
    rng = random.Random(0)
    for _ in range(10):
        fill(opened(folder), rng.sample(numbers, 60), block=rng.randint(1, 16))
    store = opened(folder)
    fill(store, numbers)
    assert not wrong_rows(store, numbers)
    assert store.num_rows == len(numbers)


@pytest.mark.parametrize("name", ["keys.bin", "0.bin", "1.bin"])
def test_a_flipped_bit_is_noticed_and_costs_its_block_alone(folder: Path, name: str) -> None:
    filled(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) * 12 // 20] ^= 1  # in row 12
    (folder / name).write_bytes(content)
    again = opened(folder)
    assert missing_from(again, SOME) == list(range(8, 16))
    assert again.damaged == 1
    assert fill(again, SOME) == 8
    repaired = opened(folder)
    assert not missing_from(repaired, SOME)
    assert not wrong_rows(repaired, SOME)
    assert not repaired.damaged  # the damaged block has been struck out


def test_a_file_without_its_end_costs_the_blocks_that_were_there(folder: Path) -> None:
    filled(folder)
    content = (folder / "1.bin").read_bytes()
    (folder / "1.bin").write_bytes(content[:-30])
    again = opened(folder)
    assert missing_from(again, SOME) == list(range(16, 20))
    fill(again, SOME)
    assert not wrong_rows(again, SOME)


@pytest.mark.parametrize("cut", [1, 23, 24, 30])
def test_a_log_cut_short_costs_the_blocks_at_its_end(folder: Path, cut: int) -> None:
    filled(folder)
    log = folder / "blocks.bin"
    log.write_bytes(log.read_bytes()[:-cut])
    again = opened(folder)
    lost = list(range(16 if cut <= 24 else 8, 20))
    assert missing_from(again, SOME) == lost
    fill(again, SOME)
    assert not wrong_rows(opened(folder), SOME)
    assert not missing_from(opened(folder), SOME)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0}'])
def test_a_damaged_description_is_written_again_and_costs_nothing(
    folder: Path, content: str
) -> None:
    filled(folder)
    (folder / "meta.json").write_text(content)
    assert not missing_from(opened(folder), SOME)
    assert [one.description["network"] for one in stored(folder.parent)] == ["x"]


def test_rows_of_another_computation_are_not_taken(folder: Path) -> None:
    filled(folder)
    other = DiskStore(folder, LAYOUT, {"network": "another"})
    assert missing_from(other, SOME) == SOME
    assert other.damaged


def test_rows_that_another_store_object_adds_are_found(folder: Path) -> None:
    one, other = opened(folder), opened(folder)
    fill(one, SOME)
    assert not missing_from(other, SOME)
    assert not wrong_rows(other, SOME)


def test_rows_computed_twice_are_stored_once(folder: Path) -> None:
    one, other = opened(folder), opened(folder)
    for start in range(0, 20, 4):
        append(one, SOME[start : start + 4])
        append(other, SOME[max(start - 2, 0) : start + 4])
    assert opened(folder).num_rows == len(SOME)
    assert not wrong_rows(opened(folder), SOME)


def _fill_in_process(folder: Path, numbers: list[int]) -> None:
    store = opened(folder)
    while missing_from(store, numbers):
        fill(store, numbers, block=3)
    os._exit(wrong_rows(store, numbers))


def test_two_processes_fill_one_store(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    halves = [list(range(400)), list(range(200, 600))]
    processes = [fork.Process(target=_fill_in_process, args=(folder, half)) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = opened(folder)
    assert store.num_rows == 600
    assert not wrong_rows(store, list(range(600)))
    assert not store.damaged


# The index


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(row_index, "_AT_ONCE", 7)


@pytest.mark.usefixtures("small_index")
def test_rows_are_found_through_an_index_that_grew(folder: Path) -> None:
    numbers = list(range(300))
    rng = random.Random(0)
    for _ in range(8):
        store = opened(folder)
        fill(store, rng.sample(numbers, 80))
        store.save_index()
        assert not wrong_rows(opened(folder), numbers)
    store = opened(folder)
    assert 16 <= store._index.covered <= store.num_rows
    fill(store, numbers)
    assert store.num_rows == 300
    assert not missing_from(opened(folder), numbers)


@pytest.mark.usefixtures("small_index")
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_index_is_never_believed(folder: Path, cut: bool) -> None:
    numbers = list(range(64))
    store = opened(folder)
    fill(store, numbers)
    store.save_index()
    whole = (folder / "index.bin").read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / "index.bin").write_bytes(content[: rng.randrange(len(whole))] if cut else content)
        again = opened(folder)
        assert not wrong_rows(again, numbers)
        fill(again, numbers)
        assert not missing_from(again, numbers)
        assert not wrong_rows(again, numbers)


@pytest.mark.usefixtures("small_index")
def test_the_newest_of_equal_keys_counts_after_damage(folder: Path) -> None:
    store = opened(folder)
    fill(store, SOME)
    store.save_index()
    content = bytearray((folder / "0.bin").read_bytes())
    content[0] ^= 1
    (folder / "0.bin").write_bytes(content)
    again = opened(folder)
    assert fill(again, SOME) == 8
    fill(again, list(range(20, 60)))
    again.save_index()
    last = opened(folder)
    assert last._index.covered == last.num_rows == 20 + 8 + 40
    assert not missing_from(last, SOME)
    assert not wrong_rows(last, SOME)


# The cache folder


def test_the_least_recently_used_stores_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(["new", "middle", "old"]):
        filled(tmp_path / name)
        meta = tmp_path / name / "meta.json"
        os.utime(meta, (1000 - age, 1000 - age))
    size = stored(tmp_path)[0].num_bytes
    monkeypatch.setattr(cache_folder, "_IN_USE", set())  # as in a later process
    make_room(tmp_path, size, limit=2 * size + 5)
    assert [store.folder.name for store in stored(tmp_path)] == ["new"]


def test_a_store_that_is_open_stays(tmp_path: Path) -> None:
    cache_folder.use(tmp_path / "mine")
    filled(tmp_path / "mine")
    make_room(tmp_path, 10**9, limit=1)
    assert [store.folder.name for store in stored(tmp_path)] == ["mine"]


def test_rows_that_are_not_used_can_be_dropped(folder: Path) -> None:
    store = filled(folder)
    other = opened(folder)
    fill(store, list(range(20, 300)))
    store.save_index()
    kept = list(range(5, 290, 3))
    places = store.find(keys_of(kept))
    before = stored(folder.parent)[0].num_bytes
    store.keep_only(places)
    assert store.num_rows == len(kept)
    assert not missing_from(store, kept)
    assert not wrong_rows(opened(folder), list(range(300)))
    assert stored(folder.parent)[0].num_bytes < before / 2
    assert [path.name for path in folder.parent.iterdir()] == ["s"]
    # A process that had it open goes on with the old files.
    assert not wrong_rows(other, list(range(300)))
    assert not missing_from(other, list(range(300)))


def test_a_store_that_is_removed_while_it_is_filled_goes_on_for_its_own_process(
    folder: Path,
) -> None:
    store = opened(folder)
    fill(store, SOME[:10])
    remove(stored(folder.parent)[0])
    filled(folder)  # by another process, in the same place
    fill(store, SOME)
    assert not wrong_rows(store, SOME)
    assert not missing_from(store, SOME)
    assert not wrong_rows(opened(folder), SOME)


def test_a_store_that_another_process_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "gone")
    real = cache_folder._read_meta

    def removed(folder: Path) -> object:
        found = real(folder)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        return found

    monkeypatch.setattr(cache_folder, "_read_meta", removed)
    assert stored(tmp_path) == []


def test_removal_leaves_files_that_are_not_ours(folder: Path) -> None:
    filled(folder)
    (folder / "notes.txt").write_text("mine")
    remove(stored(folder.parent)[0])
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_store_of_an_earlier_version_is_removed(tmp_path: Path) -> None:
    filled(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    (old / "meta.json").write_text(
        '{"format": 1, "rows": 1, "shapes": [[3]], "dtype": "float32", "block_rows": 32, '
        '"description": {"views": "flip 2"}}'
    )
    for name in ("0.bin", "blocks.log"):
        (old / name).write_text("x")
    assert [store.folder for store in remove_unreadable(tmp_path)] == [old]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
