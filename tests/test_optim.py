"""Learning rates, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from finetune.config import OptimizerConfig, ScheduleConfig
from finetune.optim import build_optimizer, build_schedule


def learning_rates(schedule: dict[str, object], *, epochs: int, steps: int) -> list[float]:
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(
        layer.parameters(), OptimizerConfig.model_validate({"name": "sgd", "lr": 1.0})
    )
    config = ScheduleConfig.model_validate(schedule)
    plan = build_schedule(optimizer, config, epochs=epochs, steps_per_epoch=steps)
    rates = []
    for _ in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    return rates


def test_constant() -> None:
    assert learning_rates({"name": "constant"}, epochs=2, steps=3) == [1.0] * 6


def test_cosine_falls_from_the_peak_towards_zero_over_all_steps() -> None:
    rates = learning_rates({"name": "cosine"}, epochs=2, steps=5)
    assert rates == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])


def test_step_drops_every_so_many_epochs() -> None:
    rates = learning_rates({"name": "step", "step_epochs": 2, "gamma": 0.1}, epochs=4, steps=2)
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 4)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warmup_rises_linearly_to_the_peak(name: str) -> None:
    rates = learning_rates({"name": name, "warmup_epochs": 1.0}, epochs=3, steps=4)
    assert rates[:5] == pytest.approx([0.01, 0.2575, 0.505, 0.7525, 1.0])


def test_fractional_warmup_counts_steps() -> None:
    rates = learning_rates({"name": "constant", "warmup_epochs": 0.5}, epochs=2, steps=4)
    assert rates == pytest.approx([0.01, 0.505, *[1.0] * 6])


def test_optimizers_take_their_options() -> None:
    layer = nn.Linear(1, 1)
    sgd = build_optimizer(layer.parameters(), OptimizerConfig.model_validate({}))
    adamw = build_optimizer(layer.parameters(), OptimizerConfig.model_validate({"name": "adamw"}))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.01, 0.9)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.001, 0.01)
