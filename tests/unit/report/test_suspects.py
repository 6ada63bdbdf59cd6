"""Tests of the text of ``suspects`` and of its table, on a result made by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.messages import check_message, fails

from finetune.report.layout import plain
from finetune.report.suspects import HEADER, check_table, render_suspects, write_table
from finetune.results.evaluation import Interval
from finetune.results.suspects import (
    Accuracy,
    Leak,
    LeakAccuracy,
    Neighbour,
    Outlier,
    QualityFinding,
    SuspectedLabel,
    SuspectsReport,
)

NEAR = tuple(
    Neighbour(f"train/tulip/{number}.jpg", "train", name, 0.9)
    for number, name in enumerate(("tulip", "tulip", "rose"))
)


def label(number: int, split: str) -> SuspectedLabel:
    path = f"{split}/rose/a_photo_with_a_long_name_{number:04}.jpg"
    return SuspectedLabel(path, split, "rose", "tulip", 0.98, 0.02, 0.96, NEAR)


def accuracy(count: int, correct: int) -> Accuracy:
    return Accuracy(count, correct, correct / count, Interval(0.9, 0.95))


@pytest.fixture
def report() -> SuspectsReport:
    return SuspectsReport(
        source="pets.yaml",
        data="photos/flowers",
        base="/photos/flowers",
        model="mobilenet_v2",
        classes=("rose", "tulip"),
        num_train=800,
        num_val=200,
        num_folds=5,
        accuracy=0.93,
        num_not_judged=1,
        labels=tuple(label(number, "train" if number < 5 else "val") for number in range(8)),
        leaks=(
            Leak("val/rose/1.jpg", "train/rose/2.jpg", 0.991, "rose", "rose", "both"),
            Leak("val/rose/3.jpg", "train/tulip/4.jpg", 0.87, "rose", "tulip", "features"),
            Leak("val/rose/5.jpg", "train/rose/6.jpg", 0.7, "rose", "rose", "hash"),
        ),
        leak_accuracy=LeakAccuracy(accuracy(200, 184), accuracy(3, 3), accuracy(197, 181)),
        outliers=(
            Outlier("train/rose/7.jpg", "train", "rose", "all", 0.41, 0.5, NEAR[0]),
            Outlier("val/tulip/8.jpg", "val", "tulip", "class", 0.49, 0.55, NEAR[1]),
        ),
        quality=(
            QualityFinding("train/rose/9.jpg", "train", "rose", "dark", "95 % below 31 of 255"),
            QualityFinding("val/rose/10.jpg", "val", "rose", "odd_size", "900 x 40"),
        ),
        features=None,
        elapsed_s=3.21,
        files=("pets-suspects.csv",),
        next=("finetune train pets.yaml",),
    )


@pytest.mark.parametrize("width", [60, 80])
def test_the_text_is_that_of_the_golden_file(report: SuspectsReport, width: int) -> None:
    check_message(plain(render_suspects(report), width=width, verbose=False))


def test_without_findings_the_text_says_so(report: SuspectsReport) -> None:
    none = replace(
        report, labels=(), leaks=(), outliers=(), quality=(), num_not_judged=0, features=None
    )
    check_message(plain(render_suspects(none), width=80, verbose=False))


def test_without_validation_images_there_is_nothing_on_leaks(report: SuspectsReport) -> None:
    none = replace(report, num_val=0, labels=(), leaks=(), leak_accuracy=None)
    assert "leak" not in plain(render_suspects(none)).lower()


def test_verbose_lists_all(report: SuspectsReport) -> None:
    text = plain(render_suspects(report), verbose=True)
    assert all(one.path in text for one in report.labels)
    assert "more" not in text


def test_the_table_has_a_row_for_each_finding(report: SuspectsReport, tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    check_table(path, overwrite=False)
    write_table(path, report)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    found = [row["found"] for row in rows]
    assert found == ["label"] * 8 + ["leak"] * 3 + ["outlier"] * 2 + ["dark", "odd_size"]
    assert rows[0]["path"] == report.labels[0].path
    assert (rows[0]["suggested"], rows[0]["other_path"]) == ("tulip", NEAR[0].path)
    assert (rows[9]["other_path"], rows[9]["other_label"]) == ("train/tulip/4.jpg", "tulip")


def test_only_an_earlier_table_is_replaced(report: SuspectsReport, tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    write_table(path, report)
    check_table(path, overwrite=False)
    path.write_text("path,label\n")
    with fails("output.exists", path=path):
        check_table(path, overwrite=False)
    check_table(path, overwrite=True)
