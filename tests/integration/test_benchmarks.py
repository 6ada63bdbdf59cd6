"""Tests of the benchmark tables, computed from given measurements."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from helpers.paths import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(contender: str, *, wall_s: float, top1: float, epoch_s: float = 1.0) -> dict[str, Any]:
    epoch = {"train_s": 0.75 * epoch_s, "eval_s": 0.25 * epoch_s, "top1": top1}
    first = epoch | {"train_s": 100.0}  # starts workers; it counts in the whole process alone
    return {
        "contender": contender,
        "augmentation": "flip",
        "form": "",
        "epochs": [first, epoch, epoch],
        "took": {"wall_s": wall_s, "peak_anonymous_mib": 100.0},
    }


def document(*runs: dict[str, Any], epochs: int = 25, case: str = "head") -> dict[str, Any]:
    return {
        "num_images": {"train": 10, "val": 8},
        "cases": {case: {"title": "", "epochs": epochs, "runs": list(runs)}},
    }


def verdict(of: dict[str, Any], start: str) -> str:
    import reach

    goal = next(goal for goal in reach.GOALS if goal.text.startswith(start))
    return reach._verdict(goal, of)


HEAD = "Head only, 25 epochs, whole process"


@pytest.mark.parametrize(
    ("ours_s", "accuracy", "said"),
    [
        (10.0, 0.95, "40.0 x: reached"),
        (10.1, 0.95, "**not reached**"),
        (10.0, 0.94, "less accurate"),
    ],
)
def test_a_goal_is_reached_by_time_and_accuracy(ours_s: float, accuracy: float, said: str) -> None:
    plain = run("plain loop", wall_s=400.0, top1=0.95)
    ours = run("finetune, empty cache", wall_s=ours_s, top1=accuracy)
    assert said in verdict(document(plain, ours), HEAD)


def test_too_few_epochs_decide_nothing() -> None:
    plain = run("plain loop", wall_s=400.0, top1=0.95)
    ours = run("finetune, empty cache", wall_s=1.0, top1=0.95)
    assert "still to be measured" in verdict(document(plain, ours, epochs=2), HEAD)


def test_what_was_not_measured_is_said_to_be_open() -> None:
    assert verdict(document(), HEAD) == "still to be measured"


def test_an_epoch_is_the_median_after_the_first() -> None:
    import figures

    record = document(run("plain loop", wall_s=1.0, top1=0.9, epoch_s=4.0))["cases"]["head"]
    (row,) = figures.rows_of(record, 8)
    assert row.epoch_s == 4.0
    assert row.evaluated_per_s == 8 / 1.0


def test_rounds_are_summed_up_by_their_median() -> None:
    import figures

    runs = [run("plain loop", wall_s=wall_s, top1=0.9) for wall_s in (1.0, 2.0, 9.0)]
    (row,) = figures.rows_of(document(*runs)["cases"]["head"], 8)
    assert row.wall_s == 2.0


def test_every_program_of_a_case_exists() -> None:
    import cases

    peers = {peer.program for case in cases.CASES.values() for peer in case.peers}
    assert all((BENCHMARKS / "peers" / program).is_file() for program in peers)
    assert sys.modules["cases"].__file__ == str(BENCHMARKS / "cases.py")
