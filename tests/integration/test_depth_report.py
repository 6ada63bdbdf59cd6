"""Tests of ``finetune freeze-report --probe``: accuracy by depth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.messages import fails
from PIL import Image

from finetune.commands.depth_report import depth_report
from finetune.config.load import to_yaml
from finetune.config.schema import Config
from finetune.report.depth_probes import render_depths
from finetune.report.layout import plain
from finetune.results.freeze import DepthReport

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def report(make_config: Make, tmp_path: Path) -> DepthReport:
    return depth_report(make_config(runtime=FIXED), picture=tmp_path / "depth.png")


def test_the_frozen_part_may_end_at_the_first_block_near_the_best(report: DepthReport) -> None:
    blocks = [row.block for row in report.rows]
    best = max(row.top1 for row in report.rows)
    earliest = next(row for row in report.rows if row.block == report.earliest)
    error = (best * (1 - best) / report.num_val) ** 0.5
    assert earliest.top1 >= best - error
    before = report.rows[: blocks.index(report.earliest)]
    assert all(row.top1 < best - error for row in before)
    after = blocks[blocks.index(report.earliest) + 1 :]
    assert report.patterns == ("*", *(f"!{block}.*" for block in after))


def test_a_picture_is_drawn_and_may_be_drawn_again(
    report: DepthReport, make_config: Make, tmp_path: Path
) -> None:
    path = tmp_path / "depth.png"
    assert report.picture == str(path)
    with Image.open(path) as image:
        assert image.width > 600
    depth_report(make_config(runtime=FIXED), picture=path)


def test_other_files_are_not_replaced(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    Image.new("RGB", (3, 3)).save(path)
    with fails("output.exists"):
        depth_report(make_config(), picture=path)


def test_what_the_config_trains_does_not_matter(make_config: Make, report: DepthReport) -> None:
    stages = [{"epochs": 1, "freeze": {"patterns": ["*"]}}, {"epochs": 1}]
    plain = make_config(runtime=FIXED).plain()
    del plain["freeze"]
    for other in ({"recipe": "full"}, {"stages": stages}):
        assert depth_report(Config.model_validate(plain | other)).rows == report.rows


def test_validation_images_are_required(make_config: Make) -> None:
    config = make_config()
    values = {"data.root": f"{config.data.root}/train", "data.val_fraction": 0.0}
    with fails("config.no_validation", key="data.val_fraction"):
        depth_report(config.with_values(values))


def test_every_block_is_rendered(report: DepthReport) -> None:
    text = plain(render_depths(report))
    assert all(row.block in text for row in report.rows)
    assert "18 training images" in text


def test_the_command_prints_one_document(
    make_config: Make, tmp_path: Path, command_line: CommandLine
) -> None:
    file, picture = tmp_path / "pets.yaml", tmp_path / "x.png"
    file.write_text(to_yaml(make_config(runtime=FIXED)))
    arguments = ("freeze-report", "--config", str(file), "--probe", "--output", str(picture))
    done = command_line(*arguments, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["picture"] == str(picture)
    assert picture.is_file()


@pytest.mark.parametrize("options", [("--probe", "--num-classes", "3"), ("--output", "x.png")])
def test_options_without_effect_are_errors(
    make_config: Make, tmp_path: Path, command_line: CommandLine, options: tuple[str, ...]
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(make_config()))
    done = command_line("freeze-report", "--config", str(file), *options)
    assert done.code == 2
    assert "has no effect" in done.err
