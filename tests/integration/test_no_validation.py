"""Tests of ``data.val_fraction: 0``: training on all images without validation."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers.messages import fails

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.dry_run import dry_run
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.commands.export import export
from finetune.commands.lr_find import lr_find
from finetune.commands.report import report
from finetune.commands.show_batch import show_batch
from finetune.commands.train import train
from finetune.commands.tune import tune
from finetune.config.schema import Config, DataConfig
from finetune.data.checks.survey import survey
from finetune.inference.predictor import open_predictor
from finetune.report.dry_run import render_dry_run
from finetune.report.layout import plain
from finetune.report.train import render_train

Make = Callable[..., Config]


@pytest.fixture
def whole(make_config: Make, photos: Path) -> Make:
    """Configs that train on all 18 photos."""
    shutil.rmtree(photos / "val")

    def make(**sections: object) -> Config:
        return make_config(**{"data": {"val_fraction": 0}, **sections})

    return make


def test_every_image_is_trained_on_and_the_last_epoch_is_kept(whole: Make) -> None:
    config = whole()
    summary = train(config)
    assert (summary.num_train, summary.num_val) == (18, 0)
    assert summary.best_epoch is summary.val is summary.last is None
    assert "not measured" in plain(render_train(summary))
    assert json.loads(json.dumps(asdict(summary)))["val"] is None
    folder = Path(config.output_dir)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["val"]) for record in records] == [(1, None), (2, None)]
    assert all(math.isfinite(record["loss"]) for record in records)
    best, last = load_checkpoint(folder / "best.pt"), load_checkpoint(folder / "last.pt")
    assert best[1].epoch == last[1].epoch == 2
    assert all(torch.equal(best[0][name], last[0][name]) for name in best[0])
    _use(config, folder)


def _use(config: Config, folder: Path) -> None:
    """A run without validation predicts, and is scored on other images alone."""
    photo = next((Path(config.data.root) / "train").rglob("*.*"))
    assert open_predictor(str(folder)).predict(str(photo))
    with fails("data.no_such_split"):
        evaluate_checkpoint(folder / "best.pt")
    with fails("data.no_such_split"):
        report(str(folder))
    assert export(str(folder), file_format="safetensors").files
    other = str(Path(config.data.root) / "train")
    assert evaluate_checkpoint(folder / "best.pt", EvalOptions(data=other)).num_images == 18
    assert Path(report(str(folder), data=other).files[0]).exists()


def test_a_val_folder_is_used_all_the_same(make_config: Make) -> None:
    checked = dry_run(make_config(data={"val_fraction": 0.0}))
    assert checked.num_val == 10
    (said,) = [note for note in checked.notes if "data.val_fraction 0 has no effect" in note]
    assert "val folder, whose 10 images" in said


def test_of_a_val_folder_without_val_fraction_0_nothing_is_said(make_config: Make) -> None:
    assert not any("val_fraction" in note for note in dry_run(make_config()).notes)


def test_stages_without_validation_end_and_go_on(whole: Make) -> None:
    stages = [{"epochs": 1}, {"epochs": 1, "freeze": {"patterns": ["*", "!conv5.*"]}}]
    config = whole(stages=stages)
    summary = train(config)
    assert [stage.val for stage in summary.stages] == [None, None]
    assert "the best" not in plain(render_train(summary)).split("Stage 1")[1].split("Saved")[0]
    assert load_checkpoint(Path(config.output_dir) / "best.pt")[1].epoch == 2
    longer = whole(stages=[stages[0], {**stages[1], "epochs": 2}])
    again = train(longer, resume=True)
    assert (again.last_epoch, again.best_epoch) == (3, None)
    assert load_checkpoint(Path(config.output_dir) / "best.pt")[1].epoch == 3


def test_a_dry_run_says_what_follows(whole: Make) -> None:
    checked = dry_run(whole())
    assert checked.num_val == 0
    assert any("no accuracy is measured" in note for note in checked.notes)
    assert "0 validation images" in plain(render_dry_run(checked))


@pytest.mark.parametrize(
    "section",
    [{"train": {"early_stopping": {"patience": 2}}}, {"schedule": {"name": "plateau"}}],
)
def test_what_goes_by_a_validation_figure_is_refused(whole: Make, section: object) -> None:
    with fails("config.conflict"):
        dry_run(whole(**section))  # type: ignore[arg-type]


def test_tune_is_refused(whole: Make) -> None:
    with fails("config.no_validation", key="data.val_fraction"):
        tune(whole(tune={}))


def test_lr_find_needs_no_validation(whole: Make) -> None:
    assert lr_find(whole(), steps=20).num_train == 18


def test_show_batch_shows_training_images_alone(whole: Make, tmp_path: Path) -> None:
    shown = show_batch(whole(), tmp_path / "batch.png", count=4)
    assert (len(shown.training), len(shown.validation)) == (4, 0)


def test_check_data_draws_no_split(whole: Make) -> None:
    config: DataConfig = whole().data
    assert not survey(config, seed=0).held_out
