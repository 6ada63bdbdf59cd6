"""Tests of the Python interface: the same results as the commands, and a run as an object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import CommandLine
from helpers.messages import fails
from helpers.paths import REPOSITORY
from PIL import Image

import finetune
from finetune.config.load import to_yaml
from finetune.config.schema import Config

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def config(make_config: Make) -> Config:
    return make_config(runtime=FIXED)


@pytest.fixture
def run(config: Config) -> finetune.Run:
    return finetune.train(config, progress=False)


def test_training_gives_what_the_command_gives(
    config: Config, run: finetune.Run, tmp_path: Path, command_line: CommandLine
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(config.with_values({"output_dir": str(tmp_path / "other")})))
    done = command_line("train", "--config", str(file), "--json")
    expected = json.loads(done.out)
    assert run.metrics["top1"] == expected["val"]["top1"]
    assert run.metrics["loss"] == expected["val"]["loss"]
    assert run.summary["frozen_verified"] == expected["frozen_verified"]


@pytest.mark.parametrize("given", ["path", "mapping", "config"])
def test_a_config_may_be_a_file_values_or_an_object(
    config: Config, tmp_path: Path, given: str
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(config))
    source = {"path": file, "mapping": config.plain(), "config": config}[given]
    run = finetune.train(source, progress=False, train={"epochs": 1}, seed=3)
    assert (run.config.train.epochs, run.config.seed) == (1, 3)
    assert run.path == Path(config.output_dir)


def test_a_recipe_replaces_the_patterns_of_the_config(config: Config) -> None:
    run = finetune.train(config, progress=False, recipe="full", **{"train.epochs": 1})
    assert run.config.freeze.patterns == ()


def test_a_misspelt_key_is_answered_with_the_nearest_one(config: Config) -> None:
    with fails("config.unknown_key", key="train.epoch"):
        finetune.train(config, train={"epoch": 3})


def test_the_history_has_a_flat_row_for_each_epoch(run: finetune.Run) -> None:
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert {"loss", "lr", "val_top1", "val_loss"} <= set(run.history[0])
    assert run.best["epoch"] == run.summary["best_epoch"]
    assert run.best["val_top1"] == max(row["val_top1"] for row in run.history)


def test_without_validation_the_history_has_the_training(config: Config) -> None:
    values = {"data.root": f"{config.data.root}/train", "data.val_fraction": 0.0}
    run = finetune.train(config.with_values(values), progress=False)
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert run.metrics == {}
    assert run.best["epoch"] == 2


def test_a_run_predicts_paths_pictures_arrays_and_tensors(run: finetune.Run, photos: Path) -> None:
    path = next((photos / "val").rglob("*.png"))
    with Image.open(path) as image:
        picture = image.convert("RGB")
    pixels = np.asarray(picture)
    forms = [str(path), path, picture, pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    found = [run.predict(form)[0] for form in forms]
    assert len({(one.label, round(one.probability, 6)) for one in found}) == 1
    assert finetune.predict(run.path, path)[0].label == found[0].label
    assert run.embed(path).shape == (1, run.network.dimensions)


def test_evaluation_gives_what_the_run_recorded(run: finetune.Run) -> None:
    assert run.evaluate(progress=False).top1 == run.metrics["top1"]
    assert finetune.evaluate(run.path, progress=False).top1 == run.metrics["top1"]


def test_a_notebook_displays_the_report_in_a_frame(run: finetune.Run) -> None:
    report = run.report(progress=False)
    assert report.path.is_file()
    shown = report._repr_html_()
    assert shown.startswith("<iframe")
    assert "&lt;!doctype html&gt;" in shown
    assert "<script" not in shown


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with fails("checkpoint.not_found", path=tmp_path, worded=False):
        finetune.Run(tmp_path)


def test_progress_goes_to_stderr(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    finetune.train(config)
    said = capsys.readouterr()
    assert said.out == ""
    assert "epoch 1/2" in said.err


def test_importing_the_package_does_not_import_torch() -> None:
    script = "import finetune, sys; dir(finetune); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="fit"):
        finetune.fit  # noqa: B018


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, in order, without a notebook server; a line that begins with ! is a command."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((REPOSITORY / "docs/finetune.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        if source.startswith("!finetune "):
            words = source.removeprefix("!finetune ").split()
            command = [sys.executable, "-P", "-m", "finetune", *words]
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            subprocess.run(command, check=True, env=environment)
        else:
            exec(compile(source, "finetune.ipynb", "exec"), names)
    assert names["result"].top1 > 0.9
    assert names["deeper"].metrics["top1"] > 0.9
