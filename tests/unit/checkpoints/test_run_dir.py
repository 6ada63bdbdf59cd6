"""Tests of the names of files in a run directory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from finetune.checkpoints import run_dir

BEST = Path("runs/x/best.pt")


def name(checkpoint: Path = BEST, split: str = "val", data: str | None = None) -> str:
    return run_dir.of_evaluation("metrics.json", checkpoint, split=split, data=data)


def test_the_validation_images_of_the_best_checkpoint_have_the_plain_name() -> None:
    assert name() == "metrics.json"
    assert name(Path("other/kept.pt")) == "metrics.json"


def test_names_carry_checkpoint_and_split() -> None:
    assert name(split="test") == "metrics-test.json"
    assert name(Path("runs/x/last.pt"), split="train") == "metrics-last-train.json"


def test_each_evaluation_has_another_name_that_a_new_run_removes(tmp_path: Path) -> None:
    folders = ["a/new photos", "b/new photos", "\N{HONEYBEE}", "val", "x" * 300, "/"]
    every = itertools.product(
        (BEST, BEST.with_name("last.pt")), ("train", "val", "test"), (None, *folders)
    )
    names = [name(*one) for one in every]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 80
    run_dir.prepare(tmp_path, overwrite=False)
    for one in [*names, "metrics-of-mine.json", "report-final.html"]:
        (tmp_path / one).write_text("")
    run_dir.prepare(tmp_path, overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {run_dir.MARKER, "metrics-of-mine.json", "report-final.html"}


def test_the_name_of_a_folder_can_be_read() -> None:
    assert name(data="data/new photos").startswith("metrics-new-photos-")
    assert name(data="data/pets", split="test").startswith("metrics-pets-test-")


@pytest.mark.parametrize("data", ["data/pets", "data/../data/pets/"])
def test_a_folder_has_one_name(data: str) -> None:
    assert name(data=data) == name(data=str(Path("data/pets").absolute()))
