"""Tests of ``finetune next``: its files, what it leaves out, its output and its errors."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.messages import check_message, fails
from helpers.photos import draw_photos
from PIL import Image

import finetune
from finetune.commands.next_photos import HEADER, next_photos
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.report.layout import plain
from finetune.report.next_photos import render_next
from finetune.results.data import NextPhoto, NextPhotos

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def run(make_config: Make) -> str:
    config = make_config(
        runtime=FIXED,
        model={"weights": "bundled"},
        train={"epochs": 1},
        features={"cache": "disk"},
        freeze={"patterns": ["*"]},
    )
    train(config)
    return config.output_dir


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "pool", classes=3, count=6, seed=5)


def test_the_command_writes_a_table_and_a_sheet_and_prints_one_document(
    run: str, pool: Path, photos: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    copy = pool / "copy.png"
    shutil.copy(photos / "train" / "class_0" / "3.png", copy)
    (pool / "broken.png").write_bytes(b"no picture")
    known = photos / "val" / "class_1" / "0.png"
    output = tmp_path / "x.csv"
    arguments = ("next", run, str(pool), str(known), "--count", "4", "--output", str(output))
    done = command_line(*arguments, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["num_pool"], found["num_known"]) == (19, 1)
    assert found["near_known"] >= 1
    assert [Path(path).name for path, _ in found["unreadable"]] == ["broken.png"]
    header, *rows = csv.reader(output.read_text().splitlines())
    assert tuple(header) == HEADER
    chosen = [row[0] for row in rows]
    assert chosen == [photo["path"] for photo in found["photos"]]
    assert str(copy) not in chosen
    assert str(known) not in chosen
    margins = [float(row[5]) for row in rows]
    assert margins == sorted(margins)
    answers = finetune.load(run).predict(chosen, top=2)
    assert [row[1] for row in rows] == [answer.label for answer in answers]
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width >= 480
    assert found["files"] == [str(output), str(tmp_path / "x.png")]
    assert command_line(*arguments).code == 6  # it is there now
    assert command_line(*arguments, "--overwrite").code == 0


def test_a_run_whose_data_is_gone_still_chooses(
    run: str, pool: Path, photos: Path, tmp_path: Path
) -> None:
    photos.rename(tmp_path / "moved")
    found = next_photos(run, [str(pool)], output=tmp_path / "x.csv", count=2)
    assert len(found.photos) == 2


def test_what_gives_no_choice_is_refused(run: str, photos: Path, tmp_path: Path) -> None:
    with fails("data.all_known", source="next"):
        next_photos(run, [str(photos / "val")], output=tmp_path / "x.csv")
    with fails("config.invalid_value", key="--output"):
        next_photos(run, [str(photos)], output=tmp_path / "x.txt")
    Image.new("RGB", (3, 3)).save(tmp_path / "mine.png")
    with fails("output.exists", path="mine.png"):
        next_photos(run, [str(photos)], output=tmp_path / "mine.csv")
    assert not list(tmp_path.glob("*.csv"))


def test_a_choice_is_rendered_as_in_the_golden_file() -> None:
    result = NextPhotos(
        checkpoint="runs/pets",
        model="mobilenet_v2",
        num_pool=455,
        num_known=3,
        near_known=55,
        near_each_other=1,
        photos=(
            NextPhoto("pool/a.jpg", "rose", 0.51, "tulip", 0.47, 9),
            NextPhoto("pool/with/a/long/name/of/a/folder/b.jpg", "daisy", 0.6, "rose", 0.3, 1),
        ),
        unreadable=(("pool/c.jpg", "it is cut off"),),
        files=("pets-next.csv", "pets-next.png"),
        stand_ins={"class 3": "薔薇"},
        elapsed_s=1.0,
        features=None,
    )
    check_message(plain(render_next(result), width=80))
    assert [photo.reason for photo in result.photos] == [
        "rose or tulip; most like 8 other photos",
        "daisy or rose",
    ]
