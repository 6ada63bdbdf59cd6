"""Shared fixtures: small real networks, small real images, optional shared photos."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cache import FORMS, new_cache
from helpers.command_line import CommandLine
from helpers.counting import Count, keep
from helpers.messages import TEMPORARY
from helpers.paths import REPOSITORY
from helpers.photos import draw_photos

from finetune.config.schema import Config

# Help is listed for 80 columns without colours, wherever the tests run.
for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(name, None)
    os.unsetenv(name)  # the readline library has set COLUMNS without telling os.environ

# Two test processes share the machine, and tiny tensors gain nothing from threads.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, as the program does."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """An interpreter that is taken apart would report what is frozen as lost."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Timings of compute formats are shared by all tests, also by those of other workers.

    What fixtures of a module or a session cache does not go to the user's folder either.
    """
    base = tmp_path_factory.getbasetemp()
    forms = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "forms"
    forms.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FORMS, str(forms))
        patch.setenv("XDG_CACHE_HOME", new_cache(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of a test stay with the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", new_cache(folder))
    monkeypatch.setenv(TEMPORARY, str(tmp_path_factory.getbasetemp()))
    return folder


@pytest.fixture
def own_forms(own_cache: Path) -> None:
    """What a test times, and what its self-tests find, stays with the test."""
    (own_cache / "finetune" / "forms").unlink()


@pytest.fixture
def shared() -> Path:
    """Real photos and weights, where they are at hand."""
    folder = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared photos at {folder}; FINETUNE_SHARED names another place")
    return folder


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    """Keeps how often a promise was tried and held, where somebody asks for the record."""

    def count(promise: str, *, tried: int, held: int) -> None:
        keep(promise, tried=tried, held=held, test=request.node.nodeid)

    return count


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Calls of the command line within the test's process, with captured streams."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs of the command line, forked from one process, as `run_server` describes them."""
    from helpers.run_server import serve_runs

    yield from serve_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes under train/ (9 images each) and val/ (5 each, those of class_0 as in train/)."""
    draw_photos(tmp_path / "photos" / "train", count=9)
    draw_photos(tmp_path / "photos" / "val", count=5)
    return tmp_path / "photos"


@pytest.fixture
def make_config(tmp_path: Path, photos: Path) -> Callable[..., Config]:
    """Configs for a small network on the tiny photos; sections may be overridden by keyword."""

    def make(**sections: object) -> Config:
        values: dict[str, object] = {
            "model": {
                "name": "shufflenet_v2_x0_5",
                "weights": "none",
                "preprocessing": {"resize": 36, "crop": 32},
            },
            "data": {"root": str(photos), "batch_size": 8, "workers": 0},
            "train": {"epochs": 2},
            "output_dir": str(tmp_path / "run"),
        }
        for name, section in sections.items():
            old = values.get(name)
            both = isinstance(old, dict) and isinstance(section, dict)
            values[name] = {**old, **section} if both else section  # type: ignore[dict-item]
        return Config.model_validate(values)

    return make
