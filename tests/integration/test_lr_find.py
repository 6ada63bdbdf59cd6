"""Tests of ``finetune lr-find``: range test, suggestion, and unchanged weights."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.messages import fails
from PIL import Image

from finetune.cli import app
from finetune.commands import lr_find as command
from finetune.commands.lr_find import lr_find
from finetune.config.load import to_yaml
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.report.layout import plain
from finetune.report.tuning import render_lr_range
from finetune.training.loop import Callbacks, EpochResult, LoopState, train_epochs
from finetune.training.lr_schedulers import build_schedule
from finetune.training.prepare_stage import StageSetup, feature_batches_of, prepare_single_stage
from finetune.training.step import StepConfig
from finetune.tuning.lr_range_test import RangeTest, exponential_rates, lr_curve, range_test

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def make(make_config: Make) -> Make:
    """Configs of a small probe, and no timing of forms."""

    def fixed(**sections: object) -> Config:
        return make_config(**{"runtime": FIXED} | sections)

    return fixed


def falling(rates: np.ndarray, at: float) -> np.ndarray:
    """A loss of 1 that falls to 0 around a rate, and rises where it is a hundred times larger."""
    x = np.log10(rates / at)
    return 1 / (1 + np.exp(6 * x)) + np.clip(x - 2, 0, None)


@pytest.mark.parametrize("at", [1e-3, 0.03, 0.2])
def test_the_suggestion_is_where_the_loss_falls_most_steeply(at: float) -> None:
    rates = exponential_rates(1e-6, 10, 100)
    curve = lr_curve(rates, falling(np.array(rates), at).tolist())
    assert curve.steepest is not None
    assert abs(math.log10(curve.steepest / at)) < 0.1
    assert curve.lowest > curve.steepest


def test_noise_of_single_batches_moves_it_little() -> None:
    rates = exponential_rates(1e-6, 10, 100)
    for seed in range(20):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(100)
        curve = lr_curve(rates, (falling(np.array(rates), 0.03) + noise).tolist())
        assert curve.steepest is not None
        assert abs(math.log10(curve.steepest / 0.03)) < 0.5


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    rates = exponential_rates(1e-3, 10, 30)
    assert lr_curve(rates, [1 + rate for rate in rates]).steepest is None


def test_smoothing_follows_a_straight_line_to_its_ends() -> None:
    rates = exponential_rates(1e-4, 1, 50)
    line = [3 - 0.5 * math.log10(rate) for rate in rates]
    assert lr_curve(rates, line).smoothed == pytest.approx(line)


def range_of(stage_setup: StageSetup, rates: list[float]) -> RangeTest:
    return range_test(
        stage_setup,
        feature_batches_of(stage_setup, SilentReporter(), training=True),
        rates,
        SilentReporter(),
    )


@pytest.mark.parametrize("patterns", [["*"], ["*", "!conv5.*"]])
def test_what_trains_is_afterwards_as_before(make: Make, patterns: list[str]) -> None:
    stage_setup = prepare_single_stage(
        make(freeze={"patterns": patterns}, data={"batch_size": 6}), SilentReporter(), what="test"
    )
    before = {name: tensor.clone() for name, tensor in stage_setup.model.state_dict().items()}
    assert len(range_of(stage_setup, exponential_rates(1e-4, 1, 20)).losses) > 5
    after = stage_setup.model.state_dict()
    assert all(bool((after[name] == before[name]).all()) for name in before)


@pytest.mark.parametrize(
    ("sections", "sizes"),
    [
        ({}, [8, 8, 2]),
        ({"train": {"accumulate": 2, "clip_norm": 0.1}}, [16, 2]),
        (
            {
                "freeze": {"patterns": ["*", "!conv5.*"]},
                "optimizer": {
                    "layer_decay": 0.5,
                    "groups": [{"match": ["conv5.1.*"], "lr_scale": 0.1}],
                },
            },
            [8, 8, 2],
        ),
    ],
    ids=["plain", "accumulated", "in groups"],
)
def test_its_steps_are_those_of_training_at_that_rate(
    make: Make, sections: dict[str, dict[str, Any]], sizes: list[int]
) -> None:
    """At one rate throughout it is an ordinary run, whose steps give the same losses."""
    optimizer = {"lr": 0.02, **sections.get("optimizer", {})}
    stage_setup = prepare_single_stage(
        make(
            **{**sections, "optimizer": optimizer},
            schedule={"name": "constant", "warmup_epochs": 0.0},
        ),
        SilentReporter(),
        what="test",
    )
    config = stage_setup.config
    source = feature_batches_of(stage_setup, SilentReporter(), training=True)
    losses = range_of(stage_setup, [0.02] * (2 * len(sizes))).losses
    moves = stage_setup.optimizer_of(config.optimizer)
    epochs = list(
        train_epochs(
            LoopState(
                stage_setup.engine.trainable_part,
                moves,
                build_schedule(moves, config.schedule, epochs=2, steps_per_epoch=len(sizes)),
                num_classes=2,
            ),
            source.epoch,
            epochs=2,
            step=StepConfig(
                seed=config.seed,
                accumulate=config.train.accumulate,
                clip_norm=config.train.clip_norm,
            ),
            callbacks=Callbacks(stage_setup.set_mode),
        )
    )
    for at, epoch in enumerate(epochs):
        mine = losses[at * len(sizes) : (at + 1) * len(sizes)]
        mean = sum(loss * size for loss, size in zip(mine, sizes, strict=True)) / 18
        assert mean == pytest.approx(epoch.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "ended_at", "kept"),
    [
        ([1.0] * 10 + [1e3] + [1.0] * 9, 10, 11),
        ([1.0] * 19 + [1e3], 19, 20),
        ([1.0] * 10 + [math.nan] + [1.0] * 9, 10, 10),
        ([1.0] * 20, None, 20),
    ],
)
def test_it_ends_at_the_rate_whose_loss_said_so(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    ended_at: int | None,
    kept: int,
) -> None:
    def made_up(*_: object, **__: object) -> list[EpochResult]:
        return [EpochResult(1, 0.1, loss, 0.0, 8, 0.0) for loss in losses]

    rates = exponential_rates(1e-4, 1, 20)
    monkeypatch.setattr("finetune.tuning.lr_range_test.train_epochs", made_up)
    found = lr_find(make(), lowest=1e-4, highest=1.0, steps=20)
    assert found.diverged_at == (None if ended_at is None else rates[ended_at])
    assert len(found.points) == kept


def test_divergence_ends_it(make: Make) -> None:
    config = make(freeze={"patterns": ["*", "!conv5.*"]}, data={"batch_size": 6})
    found = lr_find(config, lowest=1e-3, highest=1e3, steps=60)
    assert found.diverged_at is not None
    assert found.diverged_at < 1e3
    assert all(math.isfinite(point.loss) for point in found.points)
    assert len(found.points) < 60


def test_a_loss_that_is_no_number_from_the_start_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*_: object, **__: object) -> RangeTest:
        return RangeTest((0.7, 0.7), 0.25)

    monkeypatch.setattr(command, "range_test", at_once)
    with fails("result.not_finite", source="lr-find"):
        lr_find(make())


def test_it_suggests_a_rate_and_writes_only_the_picture(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    config = make()
    found = lr_find(config, plot=tmp_path / "lr.png", lowest=1e-5)
    assert found.lr is not None
    assert 1e-5 < found.lr < 10
    assert found.points[0].lr == pytest.approx(1e-5)
    assert not Path(config.output_dir).exists()
    with Image.open(tmp_path / "lr.png") as image:
        assert image.width > 800
    text = plain(render_lr_range(found))
    assert f"--set optimizer.lr={found.lr:.2g}" in text
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 80


def test_a_picture_of_somebody_else_is_kept_and_an_earlier_curve_replaced(
    make: Make, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    mine = tmp_path / "mine.png"
    Image.new("RGB", (4, 4)).save(mine)
    with fails("output.exists"):
        lr_find(make(), plot=mine)
    for _ in range(2):
        lr_find(make(), plot=tmp_path / "lr.png", steps=20)
    with fails("config.plot_format", key="--output"):
        lr_find(make(), plot=tmp_path / "lr.svg")
    with fails("output.unwritable"):
        lr_find(make(), plot=tmp_path / "absent" / "lr.png")


def test_an_empty_range_is_refused_before_any_work(make: Make) -> None:
    with fails("config.invalid_value", key="--min-lr"):
        lr_find(make(data={"root": "absent"}), lowest=1.0, highest=1.0)


def test_more_steps_than_the_curve_is_made_for_are_refused(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(to_yaml(make(data={"root": "absent"})))
    monkeypatch.setattr(
        sys, "argv", ["finetune", "lr-find", "--config", "c.yaml", "--steps", "1001"]
    )
    assert app._run() == 2
    assert "should be less than or equal to 1000" in capsys.readouterr().err


def test_the_command_prints_json_and_needs_no_matplotlib(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Path("c.yaml").write_text(to_yaml(make()))
    monkeypatch.setattr(
        sys,
        "argv",
        [*("finetune", "lr-find", "--config", "c.yaml", "--json"), "--steps=30", "--max-lr=0.001"],
    )
    assert app._run() == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["plot"] is None
    assert len(document["points"]) == 30
    assert "pip install 'finetune-vision[plots]'" in captured.err
    assert not list(tmp_path.glob("*.png"))
