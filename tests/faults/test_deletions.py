"""Tests that only files written by a run or the cache are deleted or overwritten."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.counting import Count, times
from helpers.feature_rows import LAYOUT, fill, missing_from, opened
from helpers.messages import fails
from helpers.small_checkpoint import few_tensors, small_checkpoint

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Checkpoint, Metadata
from finetune.checkpoints.checkpointer import Checkpointer
from finetune.commands.cache import clear_cache
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.features import cache_folder
from finetune.features.cache_folder import make_room, stored
from finetune.features.store import DiskStore

Make = Callable[..., Config]
ROWS = list(range(10))
WALKS, STEPS = times("ROTATIONS", 40), 25


def filled(folder: Path) -> DiskStore:
    store = opened(folder)
    fill(store, ROWS)
    return store


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Somebody's own files, by the names that ours have."""
    folder = tmp_path / "elsewhere"
    names = (
        "best.pt",
        "model.onnx",
        "README.md",
        "0.bin",
        "1.bin",
        "keys.bin",
        "meta.json",
        "blocks.bin",
    )
    for name in names:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    filled(folder / "store")
    return folder


# A run's folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with every file that a run can write."""
    folder = tmp_path / "run"
    for name in (run_dir.MARKER, *run_dir._OWN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a run's")
    return folder


def test_replacing_a_run_keeps_the_users_own_files_everywhere(run: Path) -> None:
    own = ["notes.txt", "best.pt.bak", "export/onnx/mine.onnx", "export/mine", "old/best.pt"]
    for name in own:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    run_dir.prepare(run, overwrite=True)
    assert content_of(run).keys() == {*own, run_dir.MARKER}


@pytest.mark.parametrize("link", ["export", "export/onnx"])
def test_replacing_a_run_does_not_follow_a_link_to_a_folder(
    run: Path, elsewhere: Path, link: str
) -> None:
    before = content_of(elsewhere)
    shutil.rmtree(run / link)
    target = elsewhere if link == "export/onnx" else elsewhere.parent / "exports"
    if link == "export":
        (target / "onnx").mkdir(parents=True)
        (target / "onnx" / "model.onnx").write_text("mine")
    (run / link).symlink_to(target, target_is_directory=True)
    exported = content_of(target)
    run_dir.prepare(run, overwrite=True)
    assert content_of(elsewhere) == before
    assert content_of(target) == exported


def test_replacing_a_run_removes_a_link_and_not_the_file_behind_it(
    run: Path, elsewhere: Path
) -> None:
    before = content_of(elsewhere)
    for name in ("best.pt", "last.pt", "report.html"):
        (run / name).unlink()
        (run / name).symlink_to(elsewhere / "best.pt")
    run_dir.prepare(run, overwrite=True)
    assert content_of(elsewhere) == before
    assert not (run / "best.pt").is_symlink()


def test_writing_through_a_link_replaces_the_link(make_config: Make, elsewhere: Path) -> None:
    config = make_config(train={"epochs": 1})
    folder = Path(config.output_dir)
    train(config)
    before = content_of(elsewhere)
    for name in ("best.pt", "config.yaml", "metrics.jsonl"):
        (folder / name).unlink()
        (folder / name).symlink_to(elsewhere / "best.pt")
    train(config, overwrite=True)
    assert content_of(elsewhere) == before


def test_a_run_folder_that_is_a_link_is_replaced_where_it_leads(
    make_config: Make, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    config = make_config(train={"epochs": 1})
    Path(config.output_dir).symlink_to(tmp_path / "disk", target_is_directory=True)
    train(config)
    (tmp_path / "disk" / "notes.txt").write_text("mine")
    train(config, overwrite=True)
    assert Path(config.output_dir).is_symlink()
    assert (tmp_path / "disk" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_a_folder_of_the_users_own_is_refused(
    elsewhere: Path, tmp_path: Path, overwrite: bool
) -> None:
    before = content_of(elsewhere)
    (tmp_path / "link").symlink_to(elsewhere, target_is_directory=True)
    with fails("output.foreign_files", key="output_dir"):
        run_dir.prepare(tmp_path / "link", overwrite=overwrite)
    assert content_of(elsewhere) == before


# The cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache_folder, "_IN_USE", set())  # as in a later process
    filled(tmp_path / "cache" / "ours")
    cache_folder._IN_USE.clear()
    return tmp_path / "cache"


def clear(cache: Path) -> None:
    clear_cache(str(cache))


def make_room_for_all(cache: Path) -> None:
    make_room(cache, 10**9, limit=1)


@pytest.mark.parametrize("delete", [clear, make_room_for_all])
def test_emptying_the_cache_does_not_follow_links(
    cache: Path, elsewhere: Path, delete: Callable[[Path], None]
) -> None:
    before = content_of(elsewhere)
    (cache / "linked").symlink_to(elsewhere / "store", target_is_directory=True)
    (cache / "ours" / "2.bin").symlink_to(elsewhere / "0.bin")
    delete(cache)
    assert content_of(elsewhere) == before
    assert not (cache / "ours").exists()


@pytest.mark.parametrize("delete", [clear, make_room_for_all])
def test_emptying_the_cache_leaves_what_is_no_store(
    cache: Path, delete: Callable[[Path], None]
) -> None:
    """Another program's folder in the place that ``--dir`` names."""
    model = cache / "model"
    model.mkdir()
    (model / "meta.json").write_text(json.dumps({"description": {"name": "a model"}}))
    for name in ("0.bin", "pytorch_model.bin", "model.bin"):
        (model / name).write_text("mine")
        (cache / "ours" / f"my-{name}").write_text("mine")
    (cache / "ours" / "notes").mkdir()
    before = content_of(model)
    delete(cache)
    assert content_of(model) == before
    assert {path.name for path in (cache / "ours").iterdir()} == {
        *("my-0.bin", "my-pytorch_model.bin", "my-model.bin", "notes")
    }


def test_a_foreign_store_in_the_place_of_ours_loses_only_what_stores_are_made_of(
    cache: Path,
) -> None:
    folder = cache / "ours"
    (folder / "meta.json").write_text("{}")
    (folder / "thesis.txt").write_text("mine")
    (folder / "inner").mkdir()
    (folder / "inner" / "0.bin").write_text("mine")
    store = DiskStore(folder, LAYOUT, {"network": "of another kind"})
    assert missing_from(store, ROWS) == ROWS
    assert store.damaged
    assert (folder / "thesis.txt").read_text() == (folder / "inner" / "0.bin").read_text() == "mine"


def test_a_store_that_is_a_link_is_not_written_to(cache: Path, elsewhere: Path) -> None:
    before = content_of(elsewhere)
    (cache / "linked").symlink_to(elsewhere, target_is_directory=True)
    filled(cache / "linked")
    assert content_of(elsewhere) == before
    assert not missing_from(opened(cache / "linked"), ROWS)


@pytest.mark.parametrize("name", ["0.bin", "1.bin", "keys.bin", "blocks.bin", "meta.json"])
def test_a_store_with_a_link_in_it_is_not_written_through(
    cache: Path, elsewhere: Path, name: str
) -> None:
    before = content_of(elsewhere)
    (cache / "ours" / name).unlink()
    (cache / "ours" / name).symlink_to(elsewhere / name)
    filled(cache / "ours")
    assert content_of(elsewhere) == before
    assert not missing_from(opened(cache / "ours"), ROWS)


def test_a_cache_that_is_a_link_is_the_users_own_choice(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache, target_is_directory=True)
    assert [store.folder.name for store in stored(tmp_path / "link")] == ["ours"]
    clear(tmp_path / "link")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("place", ["~nobody-by-this-name/cache", "x" * 300])
def test_a_cache_in_an_impossible_place_is_one_message(
    make_config: Make, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-by-this-name").write_text("no folder")
    with fails("output.cache_unwritable"):
        train(make_config(features={"dir": place, "cache": "disk"}))


# Rotation: a long random life of a folder


class Watched:
    """What Python was asked to remove, to rename or to open for writing, and where."""

    def __init__(self) -> None:
        self.on = False
        self.touched: list[Path] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
            self._add(arguments[0])
        elif event in ("os.rename", "os.link"):
            self._add(arguments[0])
            self._add(arguments[1])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
            self._add(arguments[0])

    def _add(self, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            # The folder is followed, the file itself is not: a link may be removed.
            place = Path(os.fsdecode(path)).absolute()
            self.touched.append(Path(os.path.realpath(place.parent)) / place.name)


_WATCHED: list[Watched] = []


@pytest.fixture
def watched() -> Iterator[Watched]:
    if not _WATCHED:
        _WATCHED.append(Watched())  # a hook stays for the life of the process
    _WATCHED[0].touched.clear()
    yield _WATCHED[0]
    _WATCHED[0].on = False


class Life:
    """A run folder and a cache, and what may happen to them."""

    def __init__(self, place: Path, metadata: Metadata, rng: random.Random) -> None:
        self.place, self.metadata, self.rng = place, metadata, rng
        self.folder, self.cache = place / "run", place / "cache"
        self.mine = place / "mine"
        self.mine.mkdir(parents=True)
        (self.mine / "photo.jpg").write_bytes(b"mine")
        (self.mine / "best.pt").write_bytes(b"mine")
        self.own: dict[str, bytes] = {}

    def step(self) -> None:
        steps = [self.begin, self.save, self.rename, self.put_own, self.link, self.store]
        steps += [self.clear, self.lose, self.export]
        self.rng.choice(steps)()

    def begin(self) -> None:
        run_dir.prepare(self.folder, overwrite=True)

    def save(self) -> None:
        if not (self.folder / run_dir.MARKER).exists():
            return
        minutes = self.rng.choice([1e-9, 10])
        with Checkpointer(self.folder, (), minutes=minutes) as checkpointer:
            for _ in range(self.rng.randint(1, 3)):
                checkpoint = Checkpoint(few_tensors(2, 1.0), self.metadata)
                checkpointer.keep(checkpoint, is_best=self.rng.random() < 0.5)

    def rename(self) -> None:
        if self.folder.exists():
            other = self.place / f"run{self.rng.randrange(3)}"
            if not other.exists():
                self.folder.rename(other)
                moved = {
                    name.replace(f"{self.folder.name}/", f"{other.name}/", 1): content
                    for name, content in self.own.items()
                }
                self.own = moved
                self.folder = other

    def put_own(self) -> None:
        if self.folder.exists():
            name = self.rng.choice(["notes.txt", "export/onnx/mine", "best.pt.old", "sub/best.pt"])
            if (self.folder / "export").is_symlink():
                return
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"own")
            self.own[f"{self.folder.name}/{name}"] = b"own"

    def link(self) -> None:
        if self.folder.exists():
            for name, target in (("export", self.mine), ("last.pt", self.mine / "best.pt")):
                if not (self.folder / name).exists() and not (self.folder / name).is_symlink():
                    (self.folder / name).symlink_to(target)

    def export(self) -> None:
        if self.folder.exists() and not (self.folder / "export").exists():
            (self.folder / "export" / "onnx").mkdir(parents=True)
            (self.folder / "export" / "onnx" / "model.onnx").write_bytes(b"exported")

    def store(self) -> None:
        name = str(self.rng.randrange(3))
        if self.rng.random() < 0.2 and not (self.cache / name).exists():
            self.cache.mkdir(exist_ok=True)
            (self.cache / name).symlink_to(self.mine)
        filled(self.cache / name)
        cache_folder._IN_USE.clear()

    def clear(self) -> None:
        self.rng.choice((clear, make_room_for_all))(self.cache)

    def lose(self) -> None:
        for path in (self.folder / "best.pt", self.cache / "0" / "meta.json"):
            if path.exists() and not path.parent.is_symlink():
                path.unlink()


def test_no_life_of_a_folder_touches_a_file_outside_it(
    make_config: Make, tmp_path: Path, watched: Watched, count: Count
) -> None:
    _, metadata = small_checkpoint(make_config())
    lost = []
    for number in range(WALKS):
        place = tmp_path / str(number)
        life = Life(place, metadata, random.Random(number))
        before = content_of(life.mine)
        watched.touched.clear()
        for _ in range(STEPS):
            watched.on = True
            try:
                life.step()
            finally:
                watched.on = False
        inside = [p for p in watched.touched if p.is_relative_to(os.path.realpath(place))]
        outside = set(watched.touched) - set(inside)
        in_mine = [p for p in inside if p.is_relative_to(os.path.realpath(life.mine))]
        kept = {name: (place / name).read_bytes() for name in life.own if (place / name).exists()}
        if outside or in_mine or content_of(life.mine) != before or kept != life.own:
            lost.append(f"{number}: {outside} {in_mine} {life.own.keys() - kept.keys()}")
    count("rotation", tried=WALKS, held=WALKS - len(lost))
    assert not lost
