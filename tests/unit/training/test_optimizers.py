"""Tests of optimizers by name, their options, and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from helpers.messages import check_error, fails
from torch import nn

from finetune.config.base import AUTO
from finetune.config.optimizer import OPTIMIZERS, RATED
from finetune.config.schema import Config, OptimizerConfig, ScheduleConfig
from finetune.core.errors import ConfigError
from finetune.freezing.optimizer_options import check_optimizer
from finetune.freezing.plan import make_plan
from finetune.training.lr_schedulers import Plateau, build_schedule, end_epoch
from finetune.training.optimizers import build_optimizer

USABLE = sorted(name for name, known in OPTIMIZERS.items() if not known.refused)


def optimizer_config(**values: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"lr": 0.01} | values)


def rates_of(
    schedule: dict[str, object], *, epochs: int, steps: int, rates: tuple[float, ...] = (1.0,)
) -> list[list[float]]:
    """The learning rate of each group at each step."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in rates]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    )
    config = ScheduleConfig.model_validate({"warmup_epochs": 0.0} | schedule)
    plan = build_schedule(optimizer, config, epochs=epochs, steps_per_epoch=steps)
    seen = []
    for _ in range(epochs * steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        plan.step()
    return [list(row) for row in zip(*seen, strict=True)]


def learning_rates(schedule: dict[str, object], *, epochs: int, steps: int) -> list[float]:
    return rates_of(schedule, epochs=epochs, steps=steps)[0]


# Schedules


def test_constant() -> None:
    assert learning_rates({"name": "constant"}, epochs=2, steps=3) == [1.0] * 6


def test_cosine_falls_from_the_peak_towards_zero_over_all_steps() -> None:
    rates = learning_rates({"name": "cosine"}, epochs=2, steps=5)
    assert rates == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])


def test_step_drops_every_so_many_epochs() -> None:
    rates = learning_rates({"name": "step", "step_epochs": 2, "gamma": 0.1}, epochs=4, steps=2)
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 4)


@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_warmup_rises_linearly_to_the_peak(name: str) -> None:
    rates = learning_rates({"name": name, "warmup_epochs": 1.0}, epochs=3, steps=4)
    assert rates[:5] == pytest.approx([0.01, 0.2575, 0.505, 0.7525, 1.0])


def test_fractional_warmup_counts_steps() -> None:
    rates = learning_rates({"name": "constant", "warmup_epochs": 0.5}, epochs=2, steps=4)
    assert rates == pytest.approx([0.01, 0.505, *[1.0] * 6])


def test_one_cycle_rises_from_a_25th_to_the_peak_and_falls_to_nearly_nothing() -> None:
    rates = learning_rates({"name": "one_cycle", "rise": 0.4}, epochs=2, steps=5)
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[3] == pytest.approx(1.0)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rise", [0.01, 0.25, 0.99])
def test_one_cycle_of_a_few_steps_stays_between_nothing_and_the_peak(
    steps: int, rise: float
) -> None:
    rates = learning_rates({"name": "one_cycle", "rise": rise}, epochs=1, steps=steps)
    assert all(0 < rate <= 1 + 1e-9 for rate in rates)


@pytest.mark.parametrize("steps", [5, 8, 47, 50])
def test_one_cycle_is_torchs_own_without_cycled_momentum(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    own = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=0.3, cycle_momentum=False
    )
    expected = []
    for step in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            own.step()
    assert learning_rates({"name": "one_cycle"}, epochs=1, steps=steps) == expected


def test_one_cycle_leaves_the_momentum_as_it_was_given() -> None:
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(layer.named_parameters(), optimizer_config(momentum=0.8))
    config = ScheduleConfig.model_validate({"name": "one_cycle", "warmup_epochs": 0.0})
    schedule = build_schedule(optimizer, config, epochs=1, steps_per_epoch=10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["momentum"] == 0.8


def plateau(**options: Any) -> tuple[torch.optim.Optimizer, Plateau]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    config = ScheduleConfig.model_validate({"name": "plateau", "warmup_epochs": 0.0, **options})
    schedule = build_schedule(optimizer, config, epochs=10, steps_per_epoch=2)
    assert isinstance(schedule, Plateau)
    return optimizer, schedule


def run_epoch(optimizer: torch.optim.Optimizer, schedule: Plateau, figure: float) -> float:
    """Two steps and a figure; the learning rate after them."""
    for _ in range(2):
        optimizer.step()
        schedule.step()
    end_epoch(schedule, figure)
    return float(optimizer.param_groups[0]["lr"])


def test_plateau_drops_after_so_many_epochs_that_are_not_better() -> None:
    optimizer, schedule = plateau(patience=2, gamma=0.5)
    figures = [0.1, 0.2, 0.2, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    rates = [run_epoch(optimizer, schedule, figure) for figure in figures]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_plateau_does_not_judge_the_warm_up() -> None:
    optimizer, schedule = plateau(patience=1, gamma=0.5, warmup_epochs=2.0)
    rates = [run_epoch(optimizer, schedule, figure) for figure in (0.9, 0.1, 0.1, 0.1)]
    assert rates == pytest.approx([0.505, 1.0, 1.0, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant", "warmup_epochs": 1.0},
        {"name": "cosine", "warmup_epochs": 1.0},
        {"name": "step", "step_epochs": 1, "warmup_epochs": 0.5},
        {"name": "one_cycle"},
        {"name": "plateau", "warmup_epochs": 1.0},
    ],
)
def test_groups_keep_the_ratio_of_their_rates(schedule: dict[str, object]) -> None:
    one, other = rates_of(schedule, epochs=3, steps=4, rates=(1.0, 1e-3))
    assert other == pytest.approx([rate * 1e-3 for rate in one], rel=1e-6)
    assert schedule["name"] == "constant" or len(set(one)) > 3


def test_plateau_keeps_the_ratio_of_tiny_rates() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 1e-9}]
    )
    config = ScheduleConfig.model_validate({"name": "plateau", "patience": 1, "warmup_epochs": 0.0})
    schedule = build_schedule(optimizer, config, epochs=5, steps_per_epoch=1)
    for _ in range(3):
        end_epoch(schedule, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 1e-11])


# Optimizers


def test_the_table_is_torchs_own() -> None:
    classes = {
        name
        for name in torch.optim.__all__
        if inspect.isclass(cls := getattr(torch.optim, name))
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
    }
    assert {known.name for known in OPTIMIZERS.values()} == classes


@pytest.mark.parametrize("name", USABLE)
def test_defaults_are_torchs_own_but_for_sgd(name: str) -> None:
    signature = inspect.signature(getattr(torch.optim, OPTIMIZERS[name].name)).parameters
    own = {
        key: signature[key].default if key in signature else 0.0
        for key in ("lr", "weight_decay", "momentum")
        if key in signature or key == "weight_decay"
    }
    if name == "sgd":
        own |= {"lr": 0.01, "momentum": 0.9}
    assert OPTIMIZERS[name].defaults == own
    config = OptimizerConfig.model_validate({"name": name})
    rates = (AUTO, AUTO) if name in RATED else (own["lr"], own["weight_decay"])
    assert (config.lr, config.weight_decay) == rates
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.5})
    assert config.weight_decay == own["weight_decay"]


@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer_moves_what_it_holds_and_keeps_what_is_said(name: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 5))
    before = weight.detach().clone()
    config = optimizer_config(name=name)
    optimizer = build_optimizer([("weight", weight)], config)
    for _ in range(2):
        weight.grad = torch.randn(4, 5)
        optimizer.step()
    assert not torch.equal(before, weight)
    kept = sum(
        value.shape == weight.shape
        for value in optimizer.state[weight].values()
        if isinstance(value, torch.Tensor)
    )
    assert kept == config.state_tensors


@pytest.mark.parametrize(
    ("values", "tensors"),
    [
        ({"name": "sgd", "momentum": 0.0}, 0),
        ({"name": "adam", "options": {"amsgrad": True}}, 3),
        ({"name": "rmsprop", "momentum": 0.9, "options": {"centered": True}}, 3),
    ],
)
def test_options_change_what_is_kept(values: dict[str, Any], tensors: int) -> None:
    weight = nn.Parameter(torch.ones(4, 5))
    weight.grad = torch.ones(4, 5)
    optimizer = build_optimizer([("weight", weight)], optimizer_config(**values))
    optimizer.step()
    state = [s for s in optimizer.state[weight].values() if isinstance(s, torch.Tensor)]
    kept = sum(tensor.shape == weight.shape for tensor in state)
    assert kept == optimizer_config(**values).state_tensors == tensors


def test_optimizers_take_their_options() -> None:
    layer = nn.Linear(1, 1)
    sgd = build_optimizer(layer.named_parameters(), optimizer_config())
    adamw = build_optimizer(layer.named_parameters(), optimizer_config(name="adamw"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.01, 0.9)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.01, 0.01)
    options = {"betas": [0.8, 0.9], "amsgrad": True}
    adam = build_optimizer(layer.named_parameters(), optimizer_config(name="Adam", options=options))
    assert (adam.defaults["betas"], adam.defaults["amsgrad"]) == ((0.8, 0.9), True)
    nesterov = build_optimizer(
        layer.named_parameters(), optimizer_config(options={"nesterov": True})
    )
    assert nesterov.param_groups[0]["nesterov"]


class OnCuda(nn.Parameter):
    """Parameter that reports to be on a CUDA device."""

    is_cuda = True


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("foreach", [True, False])
def test_another_way_over_the_parameters_is_not_fused_as_well(name: str, foreach: bool) -> None:
    weight = OnCuda(torch.ones(2))
    config = optimizer_config(name=name, options={"foreach": foreach})
    assert not build_optimizer([("weight", weight)], config).defaults["fused"]
    assert build_optimizer([("weight", weight)], optimizer_config(name=name)).defaults["fused"]


def refused(name: str, options: dict[str, Any], **values: Any) -> ConfigError:
    """The error that refuses options of an optimizer, worded as in the golden file."""
    config = optimizer_config(name=name, options=options, **values)
    with pytest.raises(ConfigError) as caught:
        check_optimizer(config, {"fc.weight": nn.Parameter(torch.ones(2, 2))})
    check_error(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "options", "kind", "key"),
    [
        ("adamw", {"beta": [0.9, 0.99]}, "unknown_key", ".beta"),
        ("sgd", {"nestrov": True}, "unknown_key", ".nestrov"),
        ("sgd", {"nesterov": 1}, "invalid_value", ".nesterov"),
        ("sgd", {"foreach": 5}, "invalid_value", ".foreach"),
        ("muon", {"adjust_lr_fn": [1]}, "invalid_value", ".adjust_lr_fn"),
        ("sgd", {"dampening": "much"}, "invalid_value", ".dampening"),
        ("adamw", {"betas": 0.9}, "invalid_value", ".betas"),
        ("adamw", {"betas": [0.9]}, "invalid_value", ".betas"),
        ("adamw", {"betas": [0.9, True]}, "invalid_value", ".betas"),
        ("muon", {"ns_steps": 2.5}, "invalid_value", ".ns_steps"),
        ("adamw", {"betas": [0.9, 1.5]}, "invalid_value", ""),
        ("adamw", {"eps": -1.0}, "invalid_value", ""),
        ("muon", {"adjust_lr_fn": "mine"}, "invalid_value", ""),
    ],
)
def test_an_option_that_the_class_does_not_take_is_refused(
    name: str, options: dict[str, Any], kind: str, key: str
) -> None:
    error = refused(name, options)
    assert (error.kind, error.key) == (f"config.{kind}", f"optimizer.options{key}")


def test_values_that_do_not_go_together_are_refused() -> None:
    error = refused("sgd", {"nesterov": True}, momentum=0.0)
    assert (error.kind, error.key) == ("config.invalid_value", "optimizer.options")


def test_all_wrong_options_are_named_at_once() -> None:
    error = refused("adamw", {"beta": 1, "amsgrad": 1})
    keys = [problem.key for problem in error.problems]
    assert keys == ["optimizer.options.beta", "optimizer.options.amsgrad"]


def plan_with(model: str, **optimizer: Any) -> None:
    config = Config.model_validate(
        {
            "model": {"name": model},
            "data": {"root": "absent"},
            "optimizer": optimizer,
            "output_dir": "x",
        }
    )
    make_plan(config, 3)


def test_muon_is_refused_where_not_every_parameter_is_a_matrix() -> None:
    with fails("config.unsupported_optimizer", key="optimizer.name"):
        plan_with("resnet18", name="muon")
    plan_with("maxvit_t", name="muon")  # its head has no bias


def test_options_are_checked_with_the_plan_and_need_neither_data_nor_weights() -> None:
    with fails("config.unknown_key", key="optimizer.options.beta"):
        plan_with("resnet18", name="adamw", options={"beta": 1})
