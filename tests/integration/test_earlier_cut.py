"""Rows at an earlier split point are continued from, with the result of a run without them."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.cache import clear_cache
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.data.loading import dataloader
from finetune.features import earlier_cut
from finetune.inference.predictor import open_predictor
from finetune.results.train import TrainSummary

Make = Callable[..., Config]
LAST_BLOCK = {"recipe": "last_block"}
HEAD = {"recipe": "linear_probe"}


class Told(RecordingReporter):
    """Finds the lines about rows that were computed from those at an earlier split point."""

    @property
    def continued(self) -> list[str]:
        return [line for line in self.said if "of an earlier split point" in line]


class Decoded(list[str]):
    """Paths of the photos that were decoded."""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    paths = Decoded()
    read = dataloader.read_photo

    def counted(path: Path, *args: object, **kwargs: object) -> object:
        paths.append(str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(dataloader, "read_photo", counted)
    return paths


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 photos each, without a split."""
    return draw_photos(tmp_path / "photos", count=20)


@pytest.fixture
def make(make_config: Make, photos: Path) -> Make:
    def make(run: str, **sections: object) -> Config:
        values: dict[str, object] = {
            "runtime": {"precision": "float32", "memory_format": "contiguous"},
            "augment": {"policy": "none"},
            "output_dir": str(photos.parent / run),
        }
        for name, section in sections.items():
            old = values.get(name)
            both = isinstance(old, dict) and isinstance(section, dict)
            values[name] = {**old, **section} if both else section
        return make_config(**values)

    return make


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(config.output_dir) / "last.pt")[0]


def ran(config: Config) -> tuple[TrainSummary, Told]:
    told = Told()
    return train(config, reporter=told), told


def assert_like_without_a_cache(make: Make, config: Config, **sections: object) -> None:
    """Compare with a run in an empty cache."""
    clear_cache()
    fresh = make("fresh", **HEAD, **sections)
    _, told = ran(fresh)
    assert not told.continued
    one, other = weights(config), weights(fresh)
    assert all(torch.equal(one[name], other[name]) for name in one)


def stores(cache: Path) -> list[Path]:
    """Folders of all stores, the oldest first."""
    metas = (cache / "finetune" / "features").glob("*/meta.json")
    return [meta.parent for meta in sorted(metas, key=lambda meta: meta.stat().st_mtime)]


@pytest.mark.parametrize(
    ("name", "weights", "runtime", "policy"),
    [
        ("resnet18", "none", {"precision": "bfloat16", "memory_format": "channels_last"}, "none"),
        ("shufflenet_v2_x0_5", "bundled", {}, "flip"),
    ],
)
def test_a_head_is_trained_on_the_rows_before_the_last_block(
    make: Make,
    decoded: Decoded,
    name: str,
    weights: str,
    runtime: dict[str, str],
    policy: str,
) -> None:
    sections = {
        "model": {"name": name, "weights": weights},
        "runtime": runtime,
        "augment": {"policy": policy},
    }
    before, told = ran(make("block", **LAST_BLOCK, **sections))
    assert decoded
    assert not told.continued
    decoded.clear()
    config = make("head", **HEAD, **sections)
    summary, told = ran(config)
    assert before.features is not None
    assert summary.features is not None
    assert summary.features.computed == before.features.computed
    assert summary.features.reused == 0
    assert len(told.continued) == 2  # of training and of validation
    assert not decoded
    assert_like_without_a_cache(make, config, **sections)


def test_a_stage_that_trains_less_continues_from_the_rows_of_the_one_before(
    make: Make, decoded: Decoded
) -> None:
    """Its prefix ends with layers that the stage before has trained."""
    stages = [
        {"epochs": 1, "freeze": {"patterns": ["*", "!conv5*", "!fc*"]}},
        {"epochs": 1, "freeze": {"patterns": ["*", "!fc*"]}},
    ]
    config = make("stages", stages=stages)
    summary, told = ran(config)
    assert len(decoded) == 40
    assert summary.features is not None
    assert (summary.features.computed, summary.features.reused) == (80, 0)
    assert len(told.continued) == 2
    anew = make("anew", stages=stages, features={"cache": "memory"})
    ran(anew)
    assert len(decoded) == 120
    one, other = weights(config), weights(anew)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_new_photos_are_decoded(make: Make, photos: Path, decoded: Decoded) -> None:
    later = sorted((photos / "class_0").iterdir())[:3]
    for path in later:
        path.rename(photos.parent / path.name)
    settings = {"features": {"known_by": "content"}}
    ran(make("block", **LAST_BLOCK, **settings))
    for path in later:
        (photos.parent / path.name).rename(path)
    decoded.clear()
    config = make("head", **HEAD, **settings)
    summary, _ = ran(config)
    assert sorted(decoded) == [str(path) for path in later]
    assert summary.features is not None
    assert summary.features.computed == 40
    assert_like_without_a_cache(make, config, **settings)


def test_the_latest_cut_that_has_a_row_is_taken(make: Make, photos: Path) -> None:
    """The latest one lacks the photos that were added after it was written."""
    settings = {"features": {"known_by": "content"}, "data": {"val_fraction": 0}}
    later = sorted((photos / "class_0").iterdir())[:5]
    for path in later:
        path.rename(photos.parent / path.name)
    ran(make("block", freeze={"patterns": ["*", "!conv5*", "!fc*"]}, **settings))
    for path in later:
        (photos.parent / path.name).rename(path)
    ran(make("two", freeze={"patterns": ["*", "!stage4*", "!conv5*", "!fc*"]}, **settings))
    config = make("head", **HEAD, **settings)
    _, told = ran(config)
    assert [re.findall(r"\d+", line)[0] for line in told.continued] == ["35", "5"]
    assert ["(stage4" in line for line in told.continued] == [True, False]
    assert_like_without_a_cache(make, config, **settings)


def test_photos_are_decoded_where_the_self_test_fails(
    make: Make, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(make("block", **LAST_BLOCK))
    decoded.clear()
    monkeypatch.setattr(earlier_cut, "gives_same_rows", lambda *_: False)
    _, told = ran(make("head", **HEAD))
    assert not told.continued
    assert len(decoded) == 40


@pytest.mark.usefixtures("own_forms")
def test_a_wrong_rest_fails_the_self_test(
    make: Make, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(make("block", **LAST_BLOCK))
    decoded.clear()
    real = earlier_cut.EarlierCut._arranged
    monkeypatch.setattr(
        earlier_cut.EarlierCut, "_arranged", lambda self, tensor: real(self, tensor) * 1.001
    )
    _, told = ran(make("head", **HEAD))
    assert not told.continued
    assert len(decoded) == 40


@pytest.mark.usefixtures("own_forms")
def test_the_answer_of_the_self_test_is_remembered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(make("block", **LAST_BLOCK))
    ran(make("head", **HEAD))
    clear_cache()
    ran(make("block again", **LAST_BLOCK))
    monkeypatch.setattr(earlier_cut.EarlierCut, "_rows_of", None)
    _, told = ran(make("head again", **HEAD))
    assert told.continued


def test_damaged_rows_are_computed_from_the_photos(
    make: Make, decoded: Decoded, own_cache: Path
) -> None:
    settings = {"data": {"val_fraction": 0}}
    ran(make("block", **LAST_BLOCK, **settings))
    [store] = stores(own_cache)
    with (store / "0.bin").open("r+b") as file:  # in the first block, of 32 rows
        file.seek(1000)
        file.write(b"?")
    decoded.clear()
    config = make("head", **HEAD, **settings)
    _, told = ran(config)
    assert len(told.continued) == 1
    assert told.warned[-1].startswith(str(store))
    assert len(decoded) == 32
    assert_like_without_a_cache(make, config, **settings)


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"preprocessing": {"resize": 40, "crop": 32}}},
        {"seed": 5},  # other random weights
        {"runtime": {"memory_format": "channels_last"}},
    ],
)
def test_rows_of_another_computation_are_not_taken(
    make: Make, decoded: Decoded, other: dict[str, object]
) -> None:
    ran(make("block", **LAST_BLOCK))
    decoded.clear()
    _, told = ran(make("head", **HEAD, **other))
    assert not told.continued
    assert len(decoded) == 40


def test_a_later_cut_is_not_taken(make: Make, decoded: Decoded) -> None:
    ran(make("head", **HEAD))
    decoded.clear()
    _, told = ran(make("block", **LAST_BLOCK))
    assert not told.continued
    assert len(decoded) == 40


def test_wide_rows_are_not_worth_reading(
    make: Make, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(make("block", **LAST_BLOCK, features={"cache": "disk"}))
    decoded.clear()
    monkeypatch.setattr(earlier_cut, "worth_keeping", lambda *_: False)
    _, told = ran(make("head", **HEAD))
    assert not told.continued
    assert len(decoded) == 40


def test_a_store_without_names_stays_valid_and_is_given_them(make: Make, own_cache: Path) -> None:
    """Earlier versions wrote no names."""
    ran(make("block", **LAST_BLOCK))
    [store] = stores(own_cache)
    meta = store / "meta.json"
    content = json.loads(meta.read_text())
    del content["names"]
    meta.write_text(json.dumps(content))
    _, told = ran(make("head", **HEAD))
    assert not told.continued
    summary, _ = ran(make("again", **LAST_BLOCK))
    assert summary.features is not None
    assert (summary.features.computed, summary.features.reused) == (0, 40)
    assert json.loads(meta.read_text())["names"]


def test_a_cut_between_a_convolution_and_its_norm_is_noticed(
    make: Make, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm that follows is folded into the convolution in the longer prefix."""
    answers: list[bool] = []
    real = earlier_cut.gives_same_rows

    def noted(*args: Any) -> bool:
        answers.append(real(*args))
        return answers[-1]

    monkeypatch.setattr(earlier_cut, "gives_same_rows", noted)
    ran(make("norm", freeze={"patterns": ["*", "!conv5.1*", "!fc*"]}))
    config = make("head", **HEAD)
    decoded.clear()
    _, told = ran(config)
    assert answers == [False, False]  # for the training and the validation photos
    assert not told.continued
    assert len(decoded) == 40
    assert_like_without_a_cache(make, config)


def test_a_predictor_does_not_keep_the_frozen_tensors_of_the_network(make: Make) -> None:
    config = make("head", **HEAD)
    ran(config)
    model = open_predictor(config.output_dir)
    gc.collect()
    origin = model._engine.extractor.origin
    assert origin is not None
    assert origin.model() is None
