"""Tests of the ladder of ``recipe: auto``: candidates, lengths, prediction and configs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.messages import fails

from finetune.config.schema import Config
from finetune.config.stages import stage_configs
from finetune.models.blocks import Block
from finetune.recipes.ladder import (
    Cost,
    Step,
    extrapolated,
    last_part,
    last_step,
    next_steps,
    probe_of,
    rung_of,
    without_choices,
)
from finetune.results.train import FoundRates

MINIMAL = {"model": {"name": "resnet18"}, "data": {"root": "photos"}, "output_dir": "runs/x"}
AUTO = MINIMAL | {"recipe": "auto", "train": {"budget": "15m"}}
PART, EVERYTHING = Cost(5.0, 2.0), Cost(3.0, 20.0)
COSTS = {"last_part": PART, "everything": EVERYTHING}


def test_the_last_part_has_a_quarter_of_the_multiply_adds() -> None:
    blocks = [Block("stem", 1, False), Block("a", 1, False), Block("b", 1, False)]
    blocks.append(Block("scale", 1, True))
    macs = {"stem": 10, "a.conv": 60, "b.conv1": 14, "b.conv2": 14, "fc": 2}
    assert last_part(blocks, macs) == (("*", "!b.*", "!scale"), 0.28)
    patterns, share = last_part(blocks, macs | {"a.conv": 212})
    assert (patterns, share) == (("*", "!a.*", "!b.*", "!scale"), 240 / 252)


def test_with_time_for_both_candidates_short_runs_decide() -> None:
    assert next_steps(COSTS, 1000.0) == [Step("last_part", 30), Step("everything", 7)]


def test_with_less_time_the_last_part_is_trained() -> None:
    assert next_steps(COSTS, 120.0) == [Step("last_part", 30)]
    assert next_steps(COSTS, 30.0) == [Step("last_part", 11)]


def test_without_time_for_any_candidate_nothing_is_trained() -> None:
    assert next_steps(COSTS, 8.0) == []


def test_the_last_run_is_longer_than_the_short_one() -> None:
    assert last_step("everything", EVERYTHING, 200.0, already=4) == Step("everything", 8)
    assert last_step("everything", EVERYTHING, 200.0, already=8) is None


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.3), (0.9, 0.1)])
def test_errors_are_extrapolated_by_a_power_law(a: float, b: float) -> None:
    points = [(t, a * t**-b) for t in (10.0, 40.0, 160.0)]
    assert extrapolated(points, 320.0) == pytest.approx(a * 320.0**-b)


def test_one_point_or_no_error_predicts_nothing() -> None:
    assert extrapolated([(10.0, 0.1)], 20.0) is None
    assert extrapolated([(10.0, 0.1), (20.0, 0.0)], 40.0) is None
    assert extrapolated([(10.0, 0.0), (20.0, 0.1)], 40.0) is None


def test_a_rising_error_is_predicted_to_stay() -> None:
    assert extrapolated([(10.0, 0.1), (20.0, 0.2)], 40.0) == 0.2


def test_a_budget_replaces_what_the_ladder_chooses() -> None:
    config = Config.model_validate(
        MINIMAL
        | {
            "freeze": {"patterns": ["*", "!layer4.*"], "norm_stats": "update"},
            "train": {"epochs": 7, "monitor": "loss"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "seed": 3,
        }
    )
    changed, replaced = without_choices(config, "90s")
    assert replaced == ["freeze.patterns", "optimizer", "train.epochs"]
    assert changed.recipe == "auto"
    assert changed.train.budget == "90s"
    kept = changed.freeze.norm_stats, changed.train.monitor, changed.seed
    assert kept == ("update", "loss", 3)


def test_a_budget_keeps_what_stages_have_in_common() -> None:
    config = Config.model_validate(
        MINIMAL
        | {
            "freeze": {"norm_stats": "update"},
            "augment": {"policy": "none"},
            "runtime": {"precision": "float32"},
            "features": {"cache": "off"},
            "stages": [{"epochs": 2}, {"epochs": 3}],
        }
    )
    changed, replaced = without_choices(config, "90s")
    assert replaced == ["stages"]
    assert (changed.augment.policy, changed.freeze.norm_stats) == ("none", "update")
    assert (changed.runtime.precision, changed.features.cache) == ("float32", "off")


def test_a_budget_replaces_nothing_where_nothing_was_chosen() -> None:
    config = Config.model_validate(MINIMAL)
    assert without_choices(config, "90s")[1] == []


def test_the_first_rung_is_the_linear_probe() -> None:
    rung = probe_of(Config.model_validate(AUTO))
    assert (rung.recipe, rung.train.budget, rung.train.epochs) == ("linear_probe", None, "auto")


def test_a_rung_repeats_the_head_with_the_probes_own_optimizer() -> None:
    found = FoundRates(lr=0.003, weight_decay=0.1, heads=8, folds=5, seconds=1.0)
    stage = SimpleNamespace(optimizer="adamw")
    probe: Any = SimpleNamespace(epochs=3, found_rates=found, stages=(stage,))
    config = Config.model_validate(AUTO | {"model": {"name": "convnext_tiny"}})
    head, rest = stage_configs(rung_of(config, ["*", "!features.7.*"], probe, epochs=2))
    own = head.optimizer
    assert (own.name, own.lr, own.weight_decay) == ("adamw", 0.003, 0.1)
    assert (head.train.epochs, rest.train.epochs) == (3, 2)
    assert (rest.optimizer.name, rest.optimizer.lr) == ("auto", "auto")


def test_any_config_has_a_probe() -> None:
    stages = [{"epochs": 2, "freeze": {"patterns": ["*"]}}, {"epochs": 3}]
    for config in (AUTO, MINIMAL | {"stages": stages}, MINIMAL | {"recipe": "full"}):
        probe = probe_of(Config.model_validate(config))
        assert probe.recipe == "linear_probe"
        assert not probe.stages


@pytest.mark.parametrize("budget", ["15", "0s", "-5m", "1d", "fast", "", "1e3s"])
def test_what_is_no_duration_is_rejected(budget: str) -> None:
    with fails("config.invalid_value"):
        Config.model_validate(MINIMAL).with_values({"recipe": "auto", "train.budget": budget})


def test_a_budget_needs_recipe_auto_and_the_recipe_a_budget() -> None:
    with fails("config.no_effect", key="train.budget"):
        Config.model_validate(MINIMAL).with_values({"train.budget": "15m"})
    with fails("config.missing_key", key="recipe"):
        Config.model_validate(MINIMAL).with_values({"recipe": "auto"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("freeze.patterns", ["*"]),
        ("stages", [{"epochs": 1}]),
        ("optimizer", {"name": "sgd"}),
        ("schedule", {"name": "constant"}),
        ("train.epochs", 3),
    ],
)
def test_recipe_auto_excludes_what_it_chooses(key: str, value: object) -> None:
    with fails("config.conflict", key="recipe"):
        Config.model_validate(AUTO).with_values({key: value})


def test_a_config_with_recipe_auto_survives_being_written() -> None:
    config = Config.model_validate(AUTO)
    assert Config.model_validate(config.plain()) == config
