"""Tests of ``finetune suspects`` on drawn photos with a wrong label, a copy and an odd photo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.photos import draw_photos
from PIL import Image

from finetune.config.load import to_yaml
from finetune.config.schema import Config

Make = Callable[..., Config]


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> Path:
    """A config whose data has a photo in two classes, a copy in val, and a dark photo."""
    root = tmp_path / "planted"
    for split, count in (("train", 14), ("val", 6)):
        draw_photos(root / split, count=count, seed=len(split))
    wrong = root / "train" / "class_1" / "wrong.png"
    shutil.copy(root / "train" / "class_0" / "3.png", wrong)
    shutil.copy(root / "train" / "class_0" / "4.png", root / "val" / "class_0" / "copy.png")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "train" / "class_0" / "dark.png")
    file = tmp_path / "pets.yaml"
    fixed = {"precision": "float32", "memory_format": "contiguous"}
    cached = {"cache": "disk"}
    config = make_config(runtime=fixed, features=cached, data={"root": str(root)})
    file.write_text(to_yaml(config))
    return file


def test_planted_faults_are_found_and_features_are_computed_once(
    config_file: Path, command_line: CommandLine
) -> None:
    done = command_line("suspects", str(config_file), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    first = found["labels"][0]
    assert {first["path"], first["neighbours"][0]["path"]} == {
        "train/class_1/wrong.png",
        "train/class_0/3.png",
    }
    assert {first["given"], first["suggested"]} == {"class_0", "class_1"}
    assert (first["score"], first["split"], len(first["neighbours"])) == (1.0, "train", 3)
    leak = next(one for one in found["leaks"] if one["val"] == "val/class_0/copy.png")
    assert (leak["train"], leak["similarity"]) == ("train/class_0/4.png", pytest.approx(1))
    accuracy = found["leak_accuracy"]
    assert accuracy["every"]["num_images"] == 13
    assert accuracy["leaked"]["num_images"] == len(found["leaks"])
    assert ("train/class_0/dark.png", "dark") in [
        (one["path"], one["kind"]) for one in found["quality"]
    ]
    table = config_file.with_name("pets-suspects.csv")
    assert found["files"] == [str(table)]
    again = command_line("suspects", str(config_file), "--json")
    assert json.loads(again.out)["features"]["computed"] == 0


def test_a_run_gets_the_table_in_its_folder(
    config_file: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line("train", str(config_file), "--set", "recipe=full").code == 0
    run = tmp_path / "run"
    done = command_line("suspects", str(run))
    assert done.code == 0, done.err
    assert "pretrained weights" in done.out
    assert (run / "suspects.csv").is_file()
    assert command_line("train", str(config_file), "--overwrite").code == 0
    assert not (run / "suspects.csv").exists()


def test_nothing_is_computed_before_the_output_is_checked(
    config_file: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n")
    done = command_line("suspects", str(config_file), "--output", str(mine))
    assert done.code == 6
    assert "computing" not in done.err
    assert mine.read_text() == "a,b\n"


def test_data_without_validation_photos_has_no_leaks(
    config_file: Path, command_line: CommandLine
) -> None:
    root = Path(str(config_file)).parent / "planted" / "train"
    sets = ("--set", f"data.root={root}", "--set", "data.val_fraction=0")
    done = command_line("suspects", str(config_file), *sets, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["leaks"], found["leak_accuracy"], found["num_val"]) == ([], None, 0)
