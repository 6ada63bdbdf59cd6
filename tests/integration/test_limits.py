"""Tests of photos marked as unlike the training photos, and of prediction sets, from train on."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import CommandLine
from helpers.messages import check_message, fails
from helpers.photos import draw_photos
from PIL import Image

import finetune
from finetune.checkpoints.checkpoint import (
    load_checkpoint,
    read_checkpoint,
    replace_limits,
    save_checkpoint,
)
from finetune.commands.train import train
from finetune.config.schema import Config

Run = tuple[Path, Path]
"""A run and its photos."""


def trained(folder: Path, **sections: object) -> Path:
    values: dict[str, object] = {
        "model": {
            "name": "shufflenet_v2_x0_5",
            "weights": "bundled",
            "preprocessing": {"resize": 40, "crop": 40},
        },
        "freeze": {"patterns": ["*"]},
        "data": {"root": str(folder / "photos"), "batch_size": 8, "workers": 0},
        "train": {"epochs": 1},
        "output_dir": str(folder / "run"),
    }
    train(Config.model_validate(values | sections))
    return folder / "run"


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("limits")
    for split, seed in (("train", 0), ("val", 1)):
        draw_photos(folder / "photos" / split, count=12, seed=seed)
    draw_noise(folder / "noise")
    return trained(folder), folder


@pytest.fixture
def run(trained_once: Run, tmp_path: Path) -> Run:
    """A copy of a run on 24 photos, that has limits."""
    shutil.copytree(trained_once[0], tmp_path / "run")
    return tmp_path / "run", trained_once[1]


def draw_noise(folder: Path) -> None:
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(4):
        pixels = draws.integers(0, 256, (50, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def said(command_line: CommandLine, *arguments: str) -> tuple[int, str, str]:
    outcome = command_line(*arguments)
    return outcome.code, outcome.out, outcome.err


def without_limits(run: Path) -> None:
    save_checkpoint(run / "best.pt", *load_checkpoint(run / "best.pt"))


def test_noise_is_marked_and_few_validation_photos_are(run: Run) -> None:
    model = finetune.load(run[0])
    noise = model.predict(sorted((run[1] / "noise").glob("*.png")))
    val = model.predict(sorted((run[1] / "photos" / "val").rglob("*.png")))
    assert [prediction.unlike for prediction in noise] == [True] * 4
    assert not any(prediction.unlike for prediction in val)  # 5 % of 25 is less than two
    assert all(p.distance is not None and (p.distance > 1) is p.unlike for p in [*noise, *val])


def test_labels_and_probabilities_are_the_same_without_limits(run: Run) -> None:
    photos = sorted((run[1] / "photos" / "val").rglob("*.png"))
    marked = finetune.load(run[0]).predict(photos, coverage=0.9)
    without_limits(run[0])
    plain = finetune.load(run[0]).predict(photos)
    bare = [replace(p, distance=None, unlike=None, prediction_set=None) for p in marked]
    assert bare == plain


def test_sets_begin_with_the_label_and_grow_with_the_coverage(run: Run) -> None:
    photos = sorted((run[1] / "photos" / "val").rglob("*.png"))
    model = finetune.load(run[0])
    some, more = (model.predict(photos, coverage=coverage) for coverage in (0.6, 0.95))
    for one, other in zip(some, more, strict=True):
        assert one.prediction_set is not None
        assert other.prediction_set is not None
        assert one.prediction_set[0] == one.label
        assert other.prediction_set[: len(one.prediction_set)] == one.prediction_set
    right = [
        p.path is not None and Path(p.path).parent.name in (p.prediction_set or ()) for p in more
    ]
    assert np.mean(right) >= 0.95


def test_every_format_has_the_mark_and_the_set(run: Run, command_line: CommandLine) -> None:
    paths = [str(run[1] / "noise" / "0.png"), str(run[1] / "photos" / "val" / "class_1" / "3.png")]
    arguments = ["predict", str(run[0]), *paths, "--coverage", "0.9"]
    _, out, _ = said(command_line, *arguments)
    text = " ".join(out.split())
    assert "unlike (class_" in text
    assert "1 of 2 images (50.0%)" in text
    assert "about 5% are (limit set on 24 validation photos)" in text
    assert "at least 90% have their class in the set" in text
    _, out, _ = said(command_line, *arguments, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["unlike"] for row in rows] == ["true", "false"]
    assert float(rows[0]["distance"]) > 1
    assert "class_1" in rows[1]["set"].split("|")
    _, out, _ = said(command_line, *arguments, "--format", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["unlike"] for line in lines] == [True, False]
    _, out, _ = said(command_line, *arguments, "--json")
    document = json.loads(out)
    assert document["predictions"] == lines
    assert (document["num_unlike"], document["false_alarms"]) == (1, 0.05)
    assert (document["calibration_images"], document["coverage"]) == (24, 0.9)
    assert document["mean_set_size"] == np.mean([len(line["set"]) for line in lines])


def test_an_earlier_checkpoint_names_the_command_that_adds_limits(
    run: Run, command_line: CommandLine
) -> None:
    without_limits(run[0])
    path = str(run[1] / "noise" / "0.png")
    code, out, err = said(command_line, "predict", str(run[0]), path, "--json")
    assert code == 0
    assert json.loads(out)["num_unlike"] is None
    assert "finetune eval RUN --calibrate" in err
    code, _, err = said(command_line, "predict", str(run[0]), path, "--coverage", "0.9")
    assert code != 0
    check_message(err)


def test_calibration_adds_limits_to_an_earlier_checkpoint(
    run: Run, command_line: CommandLine
) -> None:
    before = read_checkpoint(run[0] / "best.pt").limits
    without_limits(run[0])
    _, _, err = said(
        command_line, "eval", str(run[0]), "--calibrate", "--output", str(run[0] / "out")
    )
    after = read_checkpoint(run[0] / "best.pt").limits
    assert before is not None
    assert after is not None
    assert "limits stored" in err
    assert after.record == before.record
    assert torch.allclose(after.weights, before.weights, rtol=1e-3, atol=1e-3)


def test_a_coverage_for_too_few_photos_is_refused(run: Run) -> None:
    with fails("checkpoint.too_few_images"):
        finetune.load(run[0]).predict(run[1] / "noise" / "0.png", coverage=0.99)


def test_limits_of_another_network_are_refused(run: Run) -> None:
    found = read_checkpoint(run[0] / "best.pt")
    assert found.limits is not None
    limits = replace(
        found.limits,
        centre=torch.zeros(3),
        directions=torch.zeros(1, 3),
        weights=torch.zeros(len(found.limits.weights), 3),
    )
    replace_limits(run[0] / "best.pt", found.metadata, limits)
    with fails("checkpoint.damaged", worded=False):
        finetune.load(run[0])


def test_too_few_validation_photos_mark_nothing(
    make_config: Callable[..., Config], photos: Path, command_line: CommandLine
) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    code, out, _ = said(command_line, "predict", config.output_dir, str(photos / "val"))
    assert code == 0
    assert "not marked: 10 validation photos are too few" in " ".join(out.split())
    (prediction, *_) = finetune.load(config.output_dir).predict(
        photos / "val" / "class_0" / "0.png"
    )
    assert prediction.unlike is None
