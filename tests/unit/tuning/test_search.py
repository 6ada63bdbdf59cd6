"""Tests of the search: errors before it starts, folds, and training of trials."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import fails
from torch import nn
from torch.optim import Optimizer

from finetune.commands.lr_find import lr_find
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.checks.inspection_cache import InspectionCache, key_of_file
from finetune.data.images import TrainVal
from finetune.data.loading.class_weights import class_weights
from finetune.data.loading.views import Views
from finetune.features.engine import Split, make_source
from finetune.training.loop import EpochResult, LoopState
from finetune.training.prepare_stage import prepare_single_stage, set_up_single_stage
from finetune.tuning import parallel_trials
from finetune.tuning import search as search_module
from finetune.tuning.cross_validation import CrossValidation
from finetune.tuning.search import SearchOptions, search

Make = Callable[..., Config]

LAST_BLOCK = {"patterns": ["*", "!conv5.*"]}
BRIEF = {"trials": 2, "folds": 2, "epochs": [1], "batch_size": [4, 8]}


@pytest.fixture
def make(make_config: Make) -> Make:
    """Configs of a small probe with a short search, and no timing of forms."""
    fixed = {"precision": "float32", "memory_format": "contiguous"}

    def with_search(**sections: object) -> Config:
        return make_config(**{"runtime": fixed, "tune": BRIEF} | sections)

    return with_search


def data_of(config: Config) -> TrainVal:
    return set_up_single_stage(config, SilentReporter(), what="test").data


def ground_of(config: Config) -> CrossValidation:
    stage_setup = prepare_single_stage(config, SilentReporter(), what="test")
    folds = search_module.folds_of(stage_setup.config, stage_setup.data)
    return search_module._cross_validation(stage_setup, folds, SilentReporter())


# What is refused, and when


@pytest.fixture
def no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before."""

    def read(*_: object) -> None:
        raise AssertionError("the network was built and its weights read")

    monkeypatch.setattr("finetune.training.prepare_stage.load_pretrained", read)


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"optimizer": {"name": "adam"}}, "optimizer.name adam"),
        ({"optimizer": {"options": {"nesterov": True}}}, "optimizer.options"),
        ({"schedule": {"name": "plateau"}}, "schedule.name plateau"),
    ],
)
@pytest.mark.usefixtures("no_weights_are_read")
def test_what_a_trial_does_not_do_is_refused_in_a_single_stage_too(
    make: Make, stage: dict[str, Any], named: str
) -> None:
    config = make(stages=[{"epochs": 2, **stage}])
    with fails("config.unsupported_by_tune", key=named):
        search(config, SearchOptions(), reporter=SilentReporter())


@pytest.mark.usefixtures("no_weights_are_read")
def test_groups_of_a_head_alone_are_refused(make: Make) -> None:
    config = make(optimizer={"groups": [{"match": ["fc.bias"], "lr_scale": 2.0}]})
    with fails("config.unsupported_by_tune", key="optimizer.groups"):
        search(config, SearchOptions(), reporter=SilentReporter())


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({"tune": {"lr": [0.001 * n for n in range(1, 400)]}}, "config.grid_too_large"),
        (
            {"tune": {"epochs": [1]}, "schedule": {"warmup_epochs": 2.0}},
            "config.invalid_value",
        ),
        ({"freeze": {"patterns": []}, "tune": {"epochs": [1]}}, "config.slow_search"),
        ({"augment": {"policy": "crop_flip"}, "tune": {"epochs": [1]}}, "config.slow_search"),
        ({"features": {"cache": "off"}, "tune": {"epochs": [1]}}, "config.slow_search"),
        (
            {"freeze": LAST_BLOCK, "tune": {"batch_size": [1, 8], "epochs": [1]}},
            "model.batch_of_one",
        ),
    ],
)
@pytest.mark.usefixtures("no_weights_are_read")
def test_what_shapes_and_numbers_tell_is_refused_before_weights_are_read(
    make: Make, sections: dict[str, Any], kind: str
) -> None:
    config = make(data={"batch_size": 6}, **sections)
    with fails(kind):
        search(config, SearchOptions(in_grid=True), reporter=SilentReporter())


@pytest.mark.usefixtures("no_weights_are_read")
def test_impossible_folds_are_refused_before_weights_are_read(make: Make) -> None:
    with fails("data.too_few_for_folds", key="tune.folds"):
        search(
            make(tune={**BRIEF, "folds": 50}),
            SearchOptions(),
            reporter=SilentReporter(),
        )


# Folds


@pytest.mark.parametrize(("groups", "count"), [(4, 4), (9, 5), (1, 0)])
def test_auto_makes_as_many_folds_as_the_groups_give(make: Make, groups: int, count: int) -> None:
    config = make(tune=None)
    data = data_of(config)
    train = data.train
    names = tuple(f"person {path.stem[-1:]}" for path in train.paths)
    people = tuple(f"person {int(name[-1]) % groups}" for name in names)
    some = replace(data, train=replace(train, groups=people))
    assert len(search_module.folds_of(config, some)) == count
    told = make(tune={"folds": 5})
    if count < 5:
        with fails("data.too_few_for_folds", key="tune.folds"):
            search_module.folds_of(told, some)


def test_copies_that_are_known_lie_on_one_side_of_each_fold(make: Make, photos: Path) -> None:
    for name in ("0", "1", "2"):
        original = photos / "train" / "class_0" / f"{name}.png"
        for number in range(3):
            shutil.copy(original, original.with_name(f"{name}-copy-{number}.png"))
    config = make(tune={**BRIEF, "folds": 5})
    paths = data_of(config).train.paths
    with InspectionCache() as remembered:  # as check-data leaves them
        remembered.keep(
            (key_of_file(str(path)), inspect_file(str(path), full=True)) for path in paths
        )
    folds = search_module.folds_of(config, data_of(config))
    assert sorted(at for fold in folds for at in fold.held_out) == list(range(len(paths)))
    for name in ("0", "1", "2"):
        mine = {
            at
            for at, path in enumerate(paths)
            if path.parent.name == "class_0" and path.stem[0] == name
        }
        assert len(mine) == 4
        assert sum(not mine.isdisjoint(fold.held_out) for fold in folds) == 1


def test_with_balanced_weights_each_fold_has_its_own(make: Make, photos: Path) -> None:
    for name in ("0", "1", "2", "3"):
        (photos / "train" / "class_0" / f"{name}.png").unlink()
    config = make(data={"balance": "weights"}, tune={**BRIEF, "folds": 3})
    cv = ground_of(config)
    found = [fold.class_weights() for fold in cv.fold_data()]
    for fold, weights in zip(cv.folds, found, strict=True):
        assert weights == class_weights(cv.train.subset(fold.train).counts())
    assert class_weights(cv.train.counts()) not in found
    weighted = search(config, SearchOptions(), reporter=SilentReporter())
    plain = search(make(tune={**BRIEF, "folds": 3}), SearchOptions(), reporter=SilentReporter())
    assert {t.number: t.loss for t in plain.trials} != {t.number: t.loss for t in weighted.trials}


def test_held_out_images_are_judged_without_augmentation(make: Make) -> None:
    config = make(augment={"policy": "crop_flip", "views": 3})
    stage_setup = prepare_single_stage(config, SilentReporter(), what="test")
    folds = search_module.folds_of(stage_setup.config, stage_setup.data)
    cv = search_module._cross_validation(stage_setup, folds, SilentReporter())

    def features(views: Views, positions: tuple[int, ...]) -> torch.Tensor:
        images = stage_setup.data.train.subset(positions)
        source = make_source(
            stage_setup.engine,
            stage_setup.config,
            Split(images, views=views, shuffle=False, what="test"),
            workers=0,
            reporter=SilentReporter(),
        )
        return torch.cat([batch for (batch,), _ in source.epoch()])

    drawn = Views.of("crop_flip", bound=3)
    for fold, judged in zip(folds, cv.fold_data(), strict=True):
        seen = torch.cat([batch for (batch,), _ in judged.held_out.epoch()])
        # Batches of other sizes round otherwise.
        alike = partial(torch.allclose, seen, rtol=1e-3, atol=1e-10)
        assert alike(features(Views.of("none"), fold.held_out))
        assert not alike(features(drawn, fold.held_out))


# How what trains moves


class SeenError(Exception):
    """Instead of training."""


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, Optimizer]]:
    """What the loop is handed; the loop then stops."""
    seen: list[tuple[nn.Module, Optimizer]] = []

    def look(state: LoopState, *_: object, **options: object) -> Iterator[EpochResult]:
        seen.append((state.model, state.optimizer))
        raise SeenError

    monkeypatch.setattr("finetune.tuning.trials.train_epochs", look)
    monkeypatch.setattr("finetune.tuning.lr_range_test.train_epochs", look)
    return seen


def moved(seen: list[tuple[nn.Module, Optimizer]], key: str) -> dict[str, float]:
    """Return a value of each parameter's group, by parameter name in the trainable part."""
    ((trainable_part, optimizer),) = seen
    values = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in trainable_part.named_parameters() if id(p) in values}


def try_out(config: Config, *, by: str) -> None:
    searching = partial(search, config, SearchOptions(allow_slow=True), reporter=SilentReporter())
    with pytest.raises(SeenError):
        (searching if by == "tune" else partial(lr_find, config))()


@pytest.mark.parametrize("by", ["tune", "lr-find"])
def test_a_transformers_tables_are_spared_weight_decay_as_in_training(
    make: Make, optimizers: list[tuple[nn.Module, Optimizer]], by: str
) -> None:
    config = make(
        model={"name": "swin_t"},
        freeze={"patterns": ["*", "!features.7.1.*"]},
        optimizer={"name": "adamw", "weight_decay": 0.1},
    )
    try_out(config, by=by)
    decay = moved(optimizers, "weight_decay")
    tables = {name for name in decay if name.endswith("relative_position_bias_table")}
    assert {decay[name] for name in tables} == {0.0}
    assert {decay[name] for name in decay if name.endswith("mlp.0.weight")} == {0.1}


@pytest.mark.parametrize("by", ["tune", "lr-find"])
def test_groups_and_layer_decay_hold_as_in_training(
    make: Make, optimizers: list[tuple[nn.Module, Optimizer]], by: str
) -> None:
    groups = [{"match": ["conv5.1.*"], "lr_scale": 0.1}]
    config = make(
        freeze=LAST_BLOCK,
        data={"batch_size": 6},
        optimizer={"lr": 0.01, "layer_decay": 0.5, "groups": groups},
        schedule={"name": "constant", "warmup_epochs": 0.0},
    )
    try_out(config, by=by)
    rates = moved(optimizers, "initial_lr" if by == "lr-find" else "lr")
    by_end = {name.split("graph.")[-1]: rate for name, rate in rates.items()}
    assert by_end["fc.weight"] == pytest.approx(0.01)
    assert by_end["conv5.0.weight"] == pytest.approx(0.005)
    assert by_end["conv5.1.weight"] == pytest.approx(0.0005)


def test_heads_on_several_cores_score_what_they_score_on_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    beside = parallel_trials.run_in_parallel

    def counted(works: Sequence[Iterator[object]], number: int) -> Iterator[None]:
        threads.append(number)
        return beside(works, number)

    monkeypatch.setattr(parallel_trials, "run_in_parallel", counted)
    config = make(model={"name": "mobilenet_v2"}, tune={**BRIEF, "trials": 4})
    one = search(config, SearchOptions(), reporter=SilentReporter())
    monkeypatch.setattr(parallel_trials, "WORTH_SHARING", 0)
    several = search(config, SearchOptions(), reporter=SilentReporter())
    assert threads == [1, 2]  # a core for each batch size
    for mine, other in zip(one.trials, several.trials, strict=True):
        assert mine.settings == other.settings
        assert mine.loss == pytest.approx(other.loss, rel=1e-4)
