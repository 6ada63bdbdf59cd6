"""`Config.with_values`: a copy with other values at dotted keys, validated like a file."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.messages import fails

from finetune.config.schema import Config


def config_of(**sections: Any) -> Config:
    values = {
        "model": {"name": "resnet18", "weights": "none"},
        "data": {"root": "absent"},
        "output_dir": "x",
    }
    return Config.model_validate(values | sections)


def test_the_values_change_and_nothing_else_does() -> None:
    config = config_of(train={"ema": 0.5}, seed=7)
    changed = config.with_values({"train.epochs": 3, "seed": 8})
    expected = config.plain()
    expected["train"]["epochs"], expected["seed"] = 3, 8
    assert changed.plain() == expected
    assert (config.train.epochs, config.seed) == ("auto", 7)


def test_without_values_the_copy_is_equal() -> None:
    config = config_of(train={"epochs": 3}, stages=[{}, {"optimizer": {"lr": 0.1}}])
    assert config.with_values({}) == config


def test_a_section_that_was_absent_is_created() -> None:
    changed = config_of().with_values({"train.early_stopping.patience": 4, "tune.folds": 3})
    assert changed.train.early_stopping is not None
    assert (changed.train.early_stopping.patience, changed.tune and changed.tune.folds) == (4, 3)


def test_a_whole_section_can_be_replaced() -> None:
    changed = config_of().with_values({"optimizer": {"name": "adamw", "lr": 0.1}})
    assert (changed.optimizer.name, changed.optimizer.weight_decay) == ("adamw", 0.01)


def test_one_stage_changes_alone() -> None:
    config = config_of(
        train={"epochs": 5}, optimizer={"lr": 0.1, "layer_decay": 0.5}, stages=[{}, {}]
    )
    changed = config.with_values({"stages.1.epochs": 2, "stages.1.optimizer.lr": 0.2})
    assert [stage.epochs for stage in changed.stages] == [5, 2]
    assert [stage.optimizer.lr for stage in changed.stages] == [0.1, 0.2]
    assert [stage.optimizer.layer_decay for stage in changed.stages] == [0.5, 0.5]


def test_a_changed_stage_takes_nothing_new_from_the_base() -> None:
    config = config_of(
        optimizer={"layer_decay": 0.5}, stages=[{"optimizer": {"layer_decay": None}}, {}]
    )
    changed = config.with_values({"stages.0.optimizer.lr": 0.2})
    assert changed.stages[0].optimizer.layer_decay is None


def test_a_mapping_within_a_section_is_not_changed_in_place() -> None:
    config = config_of(optimizer={"name": "adamw", "options": {"eps": 1e-8}})
    changed = config.with_values({"optimizer.options.eps": 1e-6})
    assert changed.optimizer.options == {"eps": 1e-6}
    assert config.optimizer.options == {"eps": 1e-8}


def test_a_recipe_stays_valid_when_its_freeze_section_changes() -> None:
    config = config_of(recipe="linear_probe").with_values({"freeze.norm_stats": "update"})
    assert (config.recipe, config.freeze.norm_stats) == ("linear_probe", "update")


@pytest.mark.parametrize(
    ("values", "kind", "key"),
    [
        ({"train.epoch": 3}, "unknown_key", "train.epoch"),
        ({"trian.epochs": 3}, "unknown_key", "trian"),
        ({"train.epochs": 0}, "invalid_value", "train.epochs"),
        ({"train.epochs": "many"}, "invalid_value", "train.epochs"),
        ({"seed.low": 1}, "invalid_value", "seed"),
        ({"optimizer.groups": [{"lr": 0.1}]}, "missing_key", "optimizer.groups.0.match"),
        ({"stages.0.optimizer.lr": -1.0}, "invalid_value", "stages.0.optimizer.lr"),
        ({"stages.2.epochs": 1}, "not_a_section", "stages.2.epochs"),
        ({"stages.last.epochs": 1}, "not_a_section", "stages.last.epochs"),
    ],
)
def test_a_key_or_value_that_is_wrong_is_named(values: dict[str, Any], kind: str, key: str) -> None:
    with fails(f"config.{kind}", key=key):
        config_of(stages=[{}, {}]).with_values(values)


def test_the_result_is_validated_as_a_whole() -> None:
    config = config_of(train={"epochs": 5}, schedule={"warmup_epochs": 4.0})
    with fails("config.invalid_value", key="schedule.warmup_epochs"):
        config.with_values({"train.epochs": 3})


def test_all_problems_are_named_at_once() -> None:
    with fails("config.several_problems") as caught:
        config_of().with_values({"data.batch_size": 0, "seed": -1})
    assert {problem.key for problem in caught.value.problems} == {"data.batch_size", "seed"}
