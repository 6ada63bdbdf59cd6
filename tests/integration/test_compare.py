"""Tests of ``finetune compare``: differences, metrics and significance."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.messages import fails
from PIL import Image

from finetune.commands.compare import ScoredRun, compare, differing, paired_tests
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.report.evaluation import render_comparison
from finetune.report.layout import plain
from finetune.results.evaluation import RunFigures

Make = Callable[..., Config]


@pytest.fixture
def runs(make_config: Make, tmp_path: Path) -> list[str]:
    """Two runs of one epoch, with another learning rate each."""
    folders = []
    for name, lr in (("slow", 0.001), ("fast", 0.1)):
        folders.append(str(tmp_path / name))
        train(
            make_config(
                train={"epochs": 1},
                optimizer={"lr": lr, "momentum": 0.9, "weight_decay": 0.0, "name": "sgd"},
                output_dir=folders[-1],
            )
        )
    return folders


def test_only_what_differs_is_shown(runs: list[str]) -> None:
    result = compare(runs)
    assert [(row.key, row.values) for row in result.differing] == [("optimizer.lr", (0.001, 0.1))]
    text = plain(render_comparison(result))
    assert "optimizer.lr" in text
    assert "momentum" not in text


def test_a_key_that_one_config_lacks_differs(make_config: Make) -> None:
    one = make_config(optimizer={"name": "sgd"})
    other = make_config(optimizer={"name": "adamw"})
    rows = {row.key: row.values for row in differing([one, other])}
    assert rows["optimizer.momentum"] == (0.9, None)
    assert not differing([one, one])


def test_a_run_cannot_be_told_from_itself(runs: list[str]) -> None:
    (test,) = compare([runs[0], runs[0]]).tests
    assert (test.only_first, test.only_second, test.p_value) == (0, 0, 1.0)
    assert "the very same of these 10 images" in test.sentence


def figures(name: str) -> RunFigures:
    return RunFigures(name, "x.pt", "m", "d", 100, 0.9, 0.9, 0.1, 0.9, 0.1, {}, None)


def run_that_recognises(name: str, hits: set[int], config: Config, images: int = 100) -> ScoredRun:
    right = {(f"/photos/{at}.png", "ants"): at in hits for at in range(images)}
    return ScoredRun(name, config, figures(name), "", right)


def test_the_paired_test_counts_where_two_runs_disagree(make_config: Make) -> None:
    config = make_config()
    one = run_that_recognises("a", set(range(90)), config)
    other = run_that_recognises("b", set(range(3, 75)), config)
    (test,) = paired_tests([one, other])
    assert (test.only_first, test.only_second) == (18, 0)
    assert test.different
    known = "a is better than b on these 100 images: a alone recognises 18 of them, b alone 0"
    assert test.sentence.startswith(known)
    (same,) = paired_tests([one, run_that_recognises("b", set(range(3, 93)), config)])
    assert not same.different
    assert "a and b cannot be told apart on these 100 images" in same.sentence


def test_a_single_image_is_named_as_one(make_config: Make) -> None:
    config = make_config()
    (test,) = paired_tests(
        [run_that_recognises(name, {0}, config, images=1) for name in ("a", "b")]
    )
    assert test.sentence == "a and b recognise the very same of this one image"


def test_only_images_that_both_were_scored_on_count(make_config: Make) -> None:
    config = make_config()
    one = run_that_recognises("a", set(range(10)), config, images=50)
    other = run_that_recognises("b", set(range(40, 60)), config)
    (test,) = paired_tests([one, other])
    assert (test.num_images, test.only_first, test.only_second) == (50, 10, 10)
    strangers = ScoredRun("b", config, figures("b"), "", {("/elsewhere/1.png", "ants"): True})
    (none,) = paired_tests([one, strangers])
    assert none.p_value is None
    assert "no image in common" in none.sentence


def test_several_pairs_are_corrected_for(make_config: Make) -> None:
    config, generator = make_config(), random.Random(0)
    some = [
        run_that_recognises(str(n), set(generator.sample(range(100), 80)), config) for n in range(3)
    ]
    tests = paired_tests(some)
    assert len(tests) == 3
    for test in tests:
        assert test.adjusted is not None
        assert test.p_value is not None
        assert test.adjusted >= test.p_value
        assert "Holm's correction for 3 pairs" in test.sentence


def test_the_learning_curves_are_one_picture(runs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    result = compare(runs, plot=tmp_path / "curves.png")
    assert result.plot == str(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000


def test_without_matplotlib_the_message_says_what_to_install(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with fails("config.missing_package"):
        compare(runs, plot=tmp_path / "curves.png")


def test_a_picture_of_no_known_format_is_refused(runs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    with fails("config.plot_format"):
        compare(runs, plot=tmp_path / "curves.gif")


def test_one_run_is_refused_and_a_folder_without_a_run_named(tmp_path: Path) -> None:
    with fails("config.missing_argument", source="compare"):
        compare(["runs/a"])
    with fails("checkpoint.not_found"):
        compare([str(tmp_path), str(tmp_path)])
