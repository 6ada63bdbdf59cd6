"""`ResolvedConfig`: no value is ``auto``, neither in its types nor in what a run saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.messages import fails
from helpers.paths import REPOSITORY
from pydantic import BaseModel

from finetune.config.base import AUTO
from finetune.config.load import load_config
from finetune.config.resolved import PlannedConfig, ResolvedConfig
from finetune.config.schema import Config, Recipe
from finetune.config.stages import RunConfig
from finetune.core.reporter import SilentReporter
from finetune.freezing.lora import plain_state
from finetune.training.prepare_stage import CarriedState, prepare_stage
from finetune.training.setup import set_up_run

Make = Callable[..., Config]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
NOT_OF_A_STAGE = {"stages", "tune"}
"""Keys of a config that training a stage does not read."""


# Types


def words_of(annotation: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Each literal that a type permits, with the key that holds it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if f"{at}{name}" not in NOT_OF_A_STAGE:
                yield from words_of(field.annotation, f"{at}{name}.")
    elif isinstance(annotation, str):
        yield at, annotation
    for part in get_args(annotation):
        yield from words_of(part, at)


def test_the_type_permits_no_auto() -> None:
    assert ("runtime.compile.", AUTO) in words_of(Config, "")  # what the next line would find
    assert [at for at, word in words_of(ResolvedConfig, "") if word == AUTO] == []


@pytest.mark.parametrize("kind", [PlannedConfig, ResolvedConfig])
def test_the_keys_are_those_of_the_given_config_in_its_order(kind: type[Config]) -> None:
    assert [*kind.model_fields] == [*Config.model_fields]
    for name, field in Config.model_fields.items():
        given, resolved = field.annotation, kind.model_fields[name].annotation
        if isinstance(given, type) and issubclass(given, BaseModel):
            assert isinstance(resolved, type)
            assert issubclass(resolved, given)
            assert [*resolved.model_fields] == [*given.model_fields]


@pytest.mark.parametrize(
    "missing", ["train.epochs", "optimizer.lr", "schedule.warmup_epochs", "optimizer.name"]
)
def test_a_plan_refuses_what_is_still_auto(make_config: Make, missing: str) -> None:
    values: dict[str, Any] = {
        "train.epochs": 2,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.1,
        "optimizer.weight_decay": 0.0,
        "schedule.warmup_epochs": 0.0,
    }
    with fails("config.invalid_value", key=missing):
        make_config().resolved_as(PlannedConfig, values | {missing: AUTO})


# Runs


def resolved_run(config: Config) -> list[RunConfig]:
    """The config of a run after the setup of each of its stages."""
    run_setup, carried, found = set_up_run(config, SilentReporter()), None, []
    for number in range(len(run_setup.stages)):
        stage = prepare_stage(run_setup, SilentReporter(), number=number, carried=carried)
        assert isinstance(stage.config, ResolvedConfig)
        assert stage.config is stage.run_config.stages[number]
        found.append(stage.run_config)
        carried = CarriedState(plain_state(stage.model), stage.run_config)
    return found


def values_of(values: Any) -> Iterator[Any]:
    """Every value in a plain config, however deep."""
    if isinstance(values, dict):
        for value in values.values():
            yield from values_of(value)
    elif isinstance(values, list):
        for value in values:
            yield from values_of(value)
    else:
        yield values


def check_resolved(config: Config) -> None:
    run = resolved_run(config)[-1]
    for stage in run.stages:
        assert AUTO not in values_of(stage.plain())
    saved = run.saved_at(len(run.stages) - 1).plain()
    assert AUTO not in values_of(saved)
    again = resolved_run(Config.model_validate(saved))[-1]
    assert [stage.plain() for stage in again.stages] == [stage.plain() for stage in run.stages]
    assert again.saved_at(len(again.stages) - 1).plain() == saved


@pytest.mark.parametrize("recipe", [word for word in get_args(Recipe) if word != AUTO])
def test_a_recipe_leaves_no_auto_and_resolves_to_itself(make_config: Make, recipe: str) -> None:
    check_resolved(make_config(recipe=recipe, train={"epochs": AUTO}, optimizer={"name": AUTO}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_of_ours_leaves_no_auto_and_resolves_to_itself(
    photos: Path, tmp_path: Path, path: Path
) -> None:
    config = load_config(path).with_values(
        {
            "data.root": str(photos),
            "data.batch_size": 4,
            "model.weights": "none",
            "model.preprocessing": {"resize": 36, "crop": 32},
            "output_dir": str(tmp_path / "run"),
        }
    )
    check_resolved(config)


def test_a_stage_that_has_not_begun_is_saved_with_its_auto(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.recipes.heuristics._SMALL_PX", 8)  # photos of 40 pixels are large
    config = make_config(stages=[{}, {"freeze": {"patterns": []}}])
    first, last = (run.saved_at(at) for at, run in enumerate(resolved_run(config)))
    assert [stage.augment.policy for stage in first.stages] == ["flip", AUTO]
    assert [stage.augment.policy for stage in last.stages] == ["flip", "crop_flip"]
    assert [stage.optimizer.lr for stage in first.stages] == [0.0025, 0.00125]
    assert (first.augment.policy, last.augment.policy) == ("flip", "crop_flip")


def test_a_list_of_one_stage_is_saved_as_one(make_config: Make) -> None:
    (run,) = resolved_run(make_config(stages=[{"epochs": 1}]))
    assert [stage.epochs for stage in run.saved_at(0).stages] == [1]


def test_a_saved_config_reads_back_as_the_same(make_config: Make) -> None:
    run = resolved_run(make_config(stages=[{}, {"freeze": {"patterns": []}}]))[-1]
    saved = run.saved_at(1)
    assert PlannedConfig.model_validate_json(saved.model_dump_json()).plain() == saved.plain()
