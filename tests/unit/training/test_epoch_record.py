"""Tests of the line of an epoch: of one width, and at most 79 characters."""

from __future__ import annotations

import math

import pytest

from finetune.training.epoch_record import Epoch
from finetune.training.evaluate import Evaluation
from finetune.training.loop import EpochResult


def epoch(number: int, loss: float, share: float) -> Epoch:
    trained = EpochResult(number, 0.0123456, loss, share, 1_000, 12.3)
    figures = {"top1": share, "balanced_accuracy": share, "macro_f1": share, "top5": None}
    return Epoch(trained, Evaluation(num_images=10, loss=loss, per_class=(), **figures), 1.0)


@pytest.mark.parametrize("total", [9, 10, 300, 1_000])
@pytest.mark.parametrize("monitor", ["top1", "macro_f1"])
def test_columns_do_not_move_and_fit_79_characters(total: int, monitor: str) -> None:
    losses = (0.0, 0.99996, 12.3456, 99_999.0, 1e9, math.nan)
    lines = [
        epoch(number, loss, share).line(total, monitor=monitor, is_best=True)
        for number in (1, total)
        for loss in losses
        for share in (0.0, 0.5, 1.0)
    ]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 79


def test_the_line_has_the_figures_and_details_have_the_rest() -> None:
    one = epoch(3, 0.25, 0.5)
    assert one.line(10, monitor="top1", is_best=False) == (
        "epoch  3/10  loss 0.2500, val 0.2500  top-1  50.00%  balanced  50.00%"
    )
    assert one.line(10, monitor="macro_f1", is_best=True).endswith("macro F1  50.00%  best")
    assert one.details("waits") == ("epoch 3: lr 0.012, 12.3 s to train, 1.0 s to evaluate; waits")
