"""Tests of ``finetune learning-curve``: its result, its output and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.messages import check_message, fails
from helpers.photos import draw_photos
from PIL import Image

from finetune.commands.learning_curve import learning_curve
from finetune.config.load import to_yaml
from finetune.config.schema import Config
from finetune.report.layout import plain
from finetune.report.learning_curve import law_in_words, render_learning_curve
from finetune.results.learning_curve import (
    ClassProjection,
    CurvePoint,
    LearningCurve,
    PowerLaw,
    Projected,
)

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def config(make_config: Make, tmp_path: Path) -> Config:
    """A config whose data has 48 training and 10 validation photos."""
    draw_photos(tmp_path / "more" / "train", count=24, seed=1)
    draw_photos(tmp_path / "more" / "val", count=5, seed=2)
    return make_config(runtime=FIXED, data={"root": str(tmp_path / "more")})


def test_the_command_measures_draws_and_prints_one_document(
    config: Config, tmp_path: Path, command_line: CommandLine
) -> None:
    file, picture = tmp_path / "pets.yaml", tmp_path / "curve.png"
    file.write_text(to_yaml(config))
    done = command_line("learning-curve", str(file), "--output", str(picture), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [point["num_photos"] for point in found["points"]][-1] == found["num_train"] == 48
    assert len(found["points"]) == 8
    assert found["projected"]["num_photos"] == 96
    assert found["projected"]["low"] <= found["projected"]["top1"] <= found["projected"]["high"]
    assert {one["name"] for one in found["per_class"]} == {"class_0", "class_1"}
    with Image.open(picture) as image:
        assert image.width > 600


def test_data_that_is_not_enough_is_refused_before_features_are_computed(
    make_config: Make, config: Config
) -> None:
    with fails("data.too_few_for_curve"):
        learning_curve(make_config())
    values = {"data.root": f"{config.data.root}/train", "data.val_fraction": 0.0}
    with fails("config.no_validation", key="data.val_fraction"):
        learning_curve(config.with_values(values))


def test_other_files_are_not_replaced(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    Image.new("RGB", (3, 3)).save(path)
    with fails("output.exists"):
        learning_curve(config, picture=path)


RESULT = LearningCurve(
    model="mobilenet_v2",
    weights="IMAGENET1K_V2",
    num_classes=2,
    num_train=3251,
    num_val=813,
    num_draws=5,
    penalty=0.1,
    points=(
        CurvePoint(203, 0.863, 0.84, 0.887, (0.86, 0.866)),
        CurvePoint(3251, 0.918, 0.9, 0.935, (0.918,)),
    ),
    law=PowerLaw(0.031, 1.2, 0.5),
    projected=Projected(6502, 0.931, 0.922, 0.939, 0.013, 0.004, 0.021),
    per_class=(
        ClassProjection(
            "tulip", 1600, 400, 0.9, Projected(3200, 0.92, 0.9, 0.95, 0.02, -0.01, 0.05)
        ),
        ClassProjection(
            "rose", 1651, 413, 0.94, Projected(3302, 0.945, 0.93, 0.96, 0.005, -0.01, 0.02)
        ),
    ),
    picture="pets-curve.png",
    elapsed_s=1.0,
    features=None,
)


@pytest.mark.parametrize("width", [60, 80])
def test_a_curve_is_rendered_as_in_the_golden_file(width: int) -> None:
    text = plain(render_learning_curve(RESULT), width=width, verbose=False)
    assert max(map(len, text.splitlines())) <= width
    check_message(text)


def test_a_gain_that_may_be_none_says_so() -> None:
    projected = replace(RESULT.projected, gain_low=-0.01)
    text = plain(render_learning_curve(replace(RESULT, projected=projected)))
    assert "it may be none" in text
    assert "it may be none" not in plain(render_learning_curve(RESULT))


@pytest.mark.parametrize(
    "law", [PowerLaw(0.031, 1.2, 0.5), PowerLaw(0.0, 1.2, 0.5), PowerLaw(0.2, 0.0, 0.0)]
)
def test_the_law_says_whether_an_error_remains(law: PowerLaw) -> None:
    check_message(law_in_words(law))
