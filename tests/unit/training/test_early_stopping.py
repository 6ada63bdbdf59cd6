"""Tests of the choice of the best epoch, and of early stopping."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.report import report
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.config.schema import TrainConfig as Section
from finetune.report.layout import plain
from finetune.report.train import render_train
from finetune.training.early_stopping import EarlyStopping, why_stopped
from finetune.training.evaluate import Evaluation
from finetune.training.metrics import Meter

Make = Callable[..., Config]


def seen(
    top1: float = 0.5, loss: float = 1.0, balanced: float = 0.5, macro_f1: float = 0.5
) -> Evaluation:
    return Evaluation(10, top1, balanced, macro_f1, None, loss, ())


def best_of(epochs: Sequence[Evaluation], **section: Any) -> int:
    """Number of the best epoch, from 1."""
    monitor = EarlyStopping(Section.model_validate(section))
    return 1 + max(range(len(epochs)), key=lambda at: monitor.rank(epochs[at]))


def last_of(epochs: Sequence[Evaluation], **section: Any) -> int:
    """Number of the epoch after which training stops."""
    monitor = EarlyStopping(Section.model_validate(section))
    for number, val in enumerate(epochs, start=1):
        monitor.see(val)
        if monitor.stop:
            return number
    return len(epochs)


# The best epoch


def test_best_is_highest_top1_then_lower_loss_then_earlier() -> None:
    epochs = [seen(0.8, 0.5), seen(0.9, 0.5), seen(0.9, 0.4), seen(0.9, 0.4), seen(0.85, 0.1)]
    assert best_of(epochs) == 3


@pytest.mark.parametrize(
    ("monitor", "best"), [("top1", 1), ("balanced_accuracy", 2), ("macro_f1", 3), ("loss", 4)]
)
def test_the_best_epoch_is_that_of_the_monitored_figure(monitor: str, best: int) -> None:
    epochs = [seen(top1=0.9), seen(balanced=0.9), seen(macro_f1=0.9), seen(loss=0.1), seen()]
    assert best_of(epochs, monitor=monitor) == best


def test_macro_f1_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 5, 40):  # of 40 classes, some occur and are answered, some neither
        logits = torch.randn(60, classes, generator=generator)
        labels = torch.randint(0, max(classes // 2, 2), (60,), generator=generator)
        meter = Meter(classes, torch.device("cpu"))
        for part in range(0, 60, 25):
            meter.add(logits[part : part + 25], labels[part : part + 25])
        theirs = multiclass_f1_score(logits, labels, classes, average="macro")
        assert meter.macro_f1 == pytest.approx(float(theirs), abs=1e-6)


# Early stopping


def test_training_stops_after_so_many_epochs_that_are_not_better() -> None:
    epochs = [seen(top1) for top1 in (0.5, 0.6, 0.6, 0.5, 0.7, 0.7, 0.6, 0.7, 0.9)]
    assert last_of(epochs, early_stopping={"patience": 2}) == 4
    assert last_of(epochs, early_stopping={"patience": 3}) == 8
    assert last_of(epochs) == 9


def test_only_more_than_min_delta_is_better() -> None:
    epochs = [seen(top1) for top1 in (0.50, 0.52, 0.54, 0.56, 0.58, 0.60)]
    assert last_of(epochs, early_stopping={"patience": 2, "min_delta": 0.05}) == 3
    assert last_of(epochs, early_stopping={"patience": 2, "min_delta": 0.03}) == 6


def test_early_stopping_goes_by_the_figure_alone() -> None:
    """A lower loss makes the better of two equal epochs, but is no reason to go on."""
    epochs = [seen(0.9, loss) for loss in (0.5, 0.4, 0.3, 0.2)]
    assert last_of(epochs, early_stopping={"patience": 2}) == 3
    assert best_of(epochs[:3]) == 3


def test_an_epoch_that_early_stopping_does_not_count_says_so() -> None:
    monitor = EarlyStopping(
        Section.model_validate({"early_stopping": {"patience": 3, "min_delta": 0.01}})
    )
    words = []
    for val in (seen(0.8, 0.5), seen(0.8, 0.4), seen(0.805, 0.4), seen(0.9, 0.4)):
        monitor.see(val)
        words.append(monitor.waiting())
    assert [bool(word) for word in words] == [False, True, True, False]
    assert "1 of 3" in words[1]
    assert "2 of 3" in words[2]


def test_every_best_epoch_counts_without_early_stopping() -> None:
    monitor = EarlyStopping(Section.model_validate({}))
    for val in (seen(0.8, 0.5), seen(0.8, 0.4)):
        monitor.see(val)
    assert monitor.waiting() == ""


def test_early_stopping_by_loss_waits_for_it_to_fall() -> None:
    epochs = [seen(loss=loss) for loss in (0.5, 0.4, 0.45, 0.41, 0.1)]
    assert last_of(epochs, monitor="loss", early_stopping={"patience": 2}) == 4


def test_why_it_stopped_is_said_in_words() -> None:
    section = Section.model_validate(
        {"epochs": 9, "monitor": "macro_f1", "early_stopping": {"patience": 2, "min_delta": 0.01}}
    )
    assert why_stopped(section, 4) == (
        "val macro F1 had not got better by more than 0.01 for 2 epochs"
    )
    assert why_stopped(section, 9) is None


# In a run


def test_a_run_stops_early_and_says_so(make_config: Make) -> None:
    config = make_config(
        train={"epochs": 9, "early_stopping": {"patience": 2, "min_delta": 1.0}},
    )
    summary = train(config)
    lines = Path(config.output_dir, "metrics.jsonl").read_text().splitlines()
    assert len(lines) == summary.last_epoch == 3
    text = plain(render_train(summary))
    assert "Stopped    after epoch 3: val top-1 had not got better by more than 1" in text
    assert load_checkpoint(Path(config.output_dir) / "last.pt")[1].epoch == 3


def test_a_run_that_is_not_stopped_says_nothing_of_it(make_config: Make) -> None:
    summary = train(make_config())
    assert summary.stopped is None
    assert "Stopped" not in plain(render_train(summary))


def test_the_monitored_figure_chooses_the_checkpoint_and_is_named(make_config: Make) -> None:
    config = make_config(
        train={"epochs": 4, "monitor": "loss"}, optimizer={"lr": 2.0}, schedule={"name": "constant"}
    )
    summary = train(config)
    lines = Path(config.output_dir, "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val"]["loss"] for line in lines]
    best = 1 + losses.index(min(losses))
    assert summary.best_epoch == load_checkpoint(Path(config.output_dir) / "best.pt")[1].epoch
    assert summary.best_epoch == best
    assert "the best by loss" in plain(render_train(summary))
    page = Path(report(config.output_dir).files[0]).read_text()
    assert f"The best epoch is {best} of 4: lowest loss." in page


def test_the_recorded_macro_f1_is_that_of_eval(make_config: Make) -> None:
    config = make_config(train={"epochs": 1, "monitor": "macro_f1"})
    summary = train(config)
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert summary.val.macro_f1 == pytest.approx(result.macro.f1, abs=1e-6)
    recorded = json.loads(Path(config.output_dir, "metrics.jsonl").read_text())
    assert recorded["val"]["macro_f1"] == summary.val.macro_f1
