"""Tests of how ``auto`` is resolved in the training sections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.messages import fails

from finetune.commands.dry_run import dry_run
from finetune.commands.freeze_report import freeze_report
from finetune.commands.show_batch import show_batch
from finetune.commands.train import train
from finetune.config.load import load_config, to_yaml
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config
from finetune.freezing.plan import make_plan
from finetune.recipes import heuristics
from finetune.recipes.auto import in_words, plan_config, what_trains

Make = Callable[..., Config]

AUTO: dict[str, Any] = {
    "train": {"epochs": "auto"},
    "optimizer": {"name": "auto"},
    "schedule": {"warmup_epochs": "auto"},
}
LAST_BLOCK = ("*", "!layer4.*")


def config_of(model: str = "resnet18", **sections: Any) -> Config:
    values = {
        "model": {"name": model, "weights": "none"},
        "data": {"root": "absent"},
        "output_dir": "x",
        **AUTO,
        **sections,
    }
    return Config.model_validate(values)


def resolved(
    config: Config, num_train: int = 1_000, names: tuple[str, ...] = ("ants", "bees")
) -> PlannedConfig:
    return plan_config(config, make_plan(config, 2), num_train=num_train, class_names=names)


def rates_of(config: Config) -> tuple[Any, ...]:
    optimizer = config.optimizer
    return optimizer.name, optimizer.lr, optimizer.weight_decay, config.schedule.warmup_epochs


# What trains


@pytest.mark.parametrize(
    ("patterns", "what"),
    [
        (["*"], "head"),
        (["*", "!layer4.*"], "block"),
        (["*", "!*.bn1.*"], "head"),
        (["*", "!*.bias"], "head"),
        (["conv1.*", "layer1.*"], "everything"),
        ([], "everything"),
    ],
)
def test_what_trains_is_read_off_the_plan(patterns: list[str], what: str) -> None:
    config = config_of(freeze={"patterns": patterns})
    assert what_trains(make_plan(config, 2)) == what


@pytest.mark.parametrize(
    ("model", "patterns", "rates"),
    [
        ("resnet18", ["*"], ("sgd", 0.01, 0.0, 0.0)),
        ("resnet18", ["*", "!layer4.1.*"], ("adamw", 0.001, 0.01, 1.0)),
        ("resnet18", [], ("adamw", 5e-4, 0.01, 2.0)),
        ("vgg11", [], ("sgd", 0.002, 0.0, 2.0)),
        ("squeezenet1_1", ["*", "!features.12.*"], ("sgd", 0.002, 0.0, 1.0)),
        ("swin_t", ["*"], ("adamw", 0.001, 0.01, 0.0)),
        ("convnext_tiny", [], ("adamw", 5e-5, 0.01, 2.0)),
    ],
)
def test_rates_go_by_family_and_what_trains(
    model: str, patterns: list[str], rates: tuple[Any, ...]
) -> None:
    assert rates_of(resolved(config_of(model, freeze={"patterns": patterns}))) == rates


@pytest.mark.parametrize(("num_train", "epochs"), [(245, 30), (11_400, 22), (10**7, 10)])
def test_length_goes_by_the_number_of_images(num_train: int, epochs: int) -> None:
    assert resolved(config_of(), num_train).train.epochs == epochs


def test_rates_go_with_the_batch_in_proportion_for_sgd_and_with_the_root_for_adamw() -> None:
    data = {"root": "absent", "batch_size": 128}
    assert resolved(config_of(data=data)).optimizer.lr == 0.04
    assert resolved(config_of("swin_t", data=data)).optimizer.lr == 0.002


def test_a_rate_goes_with_the_images_of_a_step_and_not_far_beyond_what_was_measured() -> None:
    data = {"root": "absent", "batch_size": 128}
    assert resolved(config_of(data=data), 64).optimizer.lr == 0.02  # a batch holds 64 at most
    accumulated = config_of(train={"epochs": "auto", "accumulate": 4})
    assert resolved(accumulated).optimizer.lr == 0.04  # batches of 32
    largest = config_of(data={"root": "absent", "batch_size": 256})
    assert resolved(largest, 50_000).optimizer.lr == 0.08
    huge = config_of(data={"root": "absent", "batch_size": 4096})
    assert resolved(huge, 50_000).optimizer.lr == 0.08


def test_what_is_not_given_is_chosen_by_the_images_and_by_what_trains() -> None:
    nothing: dict[str, Any] = {"train": {}, "optimizer": {}, "schedule": {}}
    everything = resolved(config_of(freeze={"patterns": []}, **nothing), 11_400)
    assert rates_of(everything) == ("adamw", 5e-4, 0.01, 2.0)
    assert everything.train.epochs == 22
    few = resolved(config_of(freeze={"patterns": []}, **nothing), 999)
    assert rates_of(few) == ("sgd", 0.005, 0.0, 2.0)
    head = resolved(config_of(**nothing), 245)
    assert rates_of(head) == ("sgd", 0.01, 0.0, 0.0)
    assert head.train.epochs == 30


def test_an_optimizer_without_a_rule_keeps_its_own_rate() -> None:
    config = config_of(optimizer={"name": "rmsprop"}, freeze={"patterns": []})
    assert rates_of(resolved(config)) == ("rmsprop", 0.01, 0.0, 2.0)


def test_an_optimizer_that_was_named_gets_its_own_kinds_values() -> None:
    optimizer = {"name": "adam", "lr": "auto", "weight_decay": "auto"}
    assert rates_of(resolved(config_of(optimizer=optimizer)))[:3] == ("adam", 0.001, 0.0)
    everything = config_of("resnet18", freeze={"patterns": []}, optimizer=optimizer)
    assert resolved(everything).optimizer.lr == 5e-4
    assert resolved(everything, 999).optimizer.lr == 2e-4
    everything = config_of("vgg11", freeze={"patterns": []}, optimizer=optimizer)
    assert resolved(everything).optimizer.lr == 5e-5  # no norm layer limits its steps
    sgd = resolved(config_of("swin_t", optimizer=optimizer | {"name": "sgd"})).optimizer
    assert (sgd.lr, sgd.momentum) == (0.01, 0.9)


# What was given stays


def test_an_explicit_value_always_wins() -> None:
    config = config_of(
        freeze={"patterns": []},
        train={"epochs": 3},
        optimizer={"name": "auto", "lr": 0.3, "layer_decay": 0.7},
        schedule={"warmup_epochs": 0.5},
    )
    after = resolved(config)
    assert (after.train.epochs, after.schedule.warmup_epochs) == (3, 0.5)
    optimizer = after.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.layer_decay) == ("sgd", 0.3, 0.7)


def test_a_config_without_auto_stays_as_it_is() -> None:
    plain: dict[str, Any] = {
        "train": {"epochs": 25},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_epochs": 0.0},
    }
    config = config_of(freeze={"patterns": []}, **plain)
    assert resolved(config).plain() == config.plain()
    assert in_words(config, resolved(config), make_plan(config, 2), 10) == []


def test_groups_and_options_stay_where_the_rest_is_resolved() -> None:
    groups = [{"match": ["fc.*"], "lr_scale": 2.0}]
    optimizer = {"name": "adamw", "lr": "auto", "options": {"eps": 1e-6}, "groups": groups}
    after = resolved(config_of(optimizer=optimizer)).optimizer
    assert (after.lr, after.options, after.groups[0].lr_scale) == (0.001, {"eps": 1e-6}, 2.0)


def test_a_short_run_warms_up_for_a_fifth_of_it_at_most() -> None:
    config = config_of(freeze={"patterns": []}, train={"epochs": 1})
    assert resolved(config).schedule.warmup_epochs == 0.2


def test_one_cycle_needs_no_warm_up() -> None:
    schedule = {"name": "one_cycle", "warmup_epochs": "auto"}
    after = resolved(config_of(freeze={"patterns": []}, schedule=schedule))
    assert after.schedule.warmup_epochs == 0


def test_a_given_warm_up_longer_than_the_epochs_that_come_out_is_refused() -> None:
    with fails("config.invalid_value", key="schedule.warmup_epochs"):
        resolved(config_of(schedule={"warmup_epochs": 25.0}), 10**7)


def test_without_a_rule_for_an_optimizer_auto_is_refused() -> None:
    optimizer = {"name": "rmsprop", "lr": "auto"}
    with fails("config.auto_has_no_rule", key="optimizer.lr"):
        resolved(config_of(optimizer=optimizer))


def test_letters_and_digits_are_not_mirrored() -> None:
    assert resolved(config_of(), names=("a", "b")).augment.policy == "none"
    assert resolved(config_of(), names=("a", "bee")).augment.policy == "auto"
    flip = config_of(augment={"policy": "flip"})
    assert resolved(flip, names=("a", "b")).augment.policy == "flip"


# The size of images


@pytest.mark.parametrize(
    ("patterns", "size", "policy"),
    [
        ([], (95, 95), "flip"),
        ([], (96, 96), "auto"),
        (["*", "!layer4.1.*"], (32, 32), "auto"),
    ],
)
def test_small_images_are_not_cropped_where_most_layers_train(
    patterns: list[str], size: tuple[int, int], policy: str
) -> None:
    config = config_of(freeze={"patterns": patterns})
    planned = plan_config(
        config,
        make_plan(config, 2),
        num_train=100,
        class_names=("cat", "dog"),
        sizes=lambda: [size, size, (1_000, 1_000)],
    )
    assert planned.augment.policy == policy


def test_a_given_policy_is_kept_for_small_images() -> None:
    config = config_of(freeze={"patterns": []}, augment={"policy": "crop_flip"})
    planned = plan_config(
        config,
        make_plan(config, 2),
        num_train=100,
        class_names=("cat", "dog"),
        sizes=lambda: [(8, 8)],
    )
    assert planned.augment.policy == "crop_flip"


# In commands


def test_a_run_resolves_says_and_saves_it(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(**AUTO | {"train": {"epochs": 1}})
    summary = train(config)
    saved = load_config(Path(config.output_dir) / "config.yaml")
    assert "auto" not in to_yaml(saved)
    assert summary.found_rates is not None
    found = summary.found_rates.lr, summary.found_rates.weight_decay
    assert rates_of(saved) == ("sgd", *found, 0.0)
    assert summary.epochs == 1


def test_the_dry_run_prints_what_auto_became(make_config: Make) -> None:
    result = dry_run(make_config(**AUTO))
    assert result.config["train"]["epochs"] == 30
    assert result.config["optimizer"]["lr"] == 0.0025  # of batches of 8
    assert result.config["schedule"]["warmup_epochs"] == 0


def test_it_is_said_by_what_auto_was_resolved() -> None:
    config = config_of(freeze={"patterns": list(LAST_BLOCK)}, train={"epochs": 7})
    (line,) = in_words(config, resolved(config), make_plan(config, 2), 245)
    assert line == (
        "auto, for 245 images where some layers of the backbone are trained: optimizer.name "
        "adamw, optimizer.lr 0.001, optimizer.weight_decay 0.01, schedule.warmup_epochs 1.0"
    )


def test_the_freeze_report_needs_no_data_for_its_rates() -> None:
    rows = freeze_report(config_of("swin_t"), num_classes=2).groups
    assert {(row.lr, row.weight_decay) for row in rows} == {(0.001, 0.01), (0.001, 0.0)}


def test_an_epoch_past_the_ones_that_come_out_is_refused(make_config: Make, tmp_path: Path) -> None:
    with fails("config.invalid_value", key="--epoch"):
        show_batch(make_config(**AUTO), tmp_path / "x.png", epoch=31)


def test_half_of_a_backbones_layers_count_as_everything() -> None:
    assert heuristics.trains_of(50, 100) == "everything"
    assert heuristics.trains_of(49, 100) == "block"
    assert heuristics.trains_of(0, 100) == "head"
