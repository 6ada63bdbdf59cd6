"""Tests of the search that ``optimizer.lr: auto`` runs where a head alone trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.train import train
from finetune.config.load import load_config
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.results.train import FoundRates
from finetune.results.tuning import Settings
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.lr_schedulers import build_schedule
from finetune.training.prepare_stage import feature_batches_of, prepare_stage, set_up_single_stage
from finetune.training.step import StepConfig
from finetune.tuning import head_rates
from finetune.tuning.head_rates import find_rates
from finetune.tuning.search import folds_at_most
from finetune.tuning.search_space import HEAD_RATES, settings_of, space_of, with_settings

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def make(make_config: Make) -> Make:
    def make(**sections: object) -> Config:
        return make_config(**{"model": {"weights": "bundled"}, "runtime": FIXED} | sections)

    return make


def found(config: Config) -> FoundRates | None:
    run_setup = set_up_single_stage(config, SilentReporter(), what="the test")
    stage_setup = prepare_stage(run_setup, SilentReporter())
    training = feature_batches_of(stage_setup, SilentReporter(), training=True)
    return find_rates(stage_setup, training, run_setup.auto_rates, SilentReporter())


def test_the_best_rates_are_those_that_separate_training_loops_find(make: Make) -> None:
    """The loss decides, and each head is trained by the loop that trains networks."""
    config = make(train={"epochs": 3, "monitor": "loss"})
    run_setup = set_up_single_stage(config, SilentReporter(), what="the test")
    setup = prepare_stage(run_setup, SilentReporter())
    training = feature_batches_of(setup, SilentReporter(), training=True)
    part = setup.engine.trainable_part
    first = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    losses = {}
    for lr, weight_decay in HEAD_RATES["sgd"]:
        settings = Settings("sgd", lr, weight_decay, 0.0, 8, 3)
        each = []
        for fold in folds_at_most(5, setup.config, setup.data):
            batches = training.part(fold.train, batch_size=8, training=True)
            part.load_state_dict(first)
            optimizer = setup.optimizer_of(with_settings(setup.config, settings).optimizer)
            schedule = build_schedule(
                optimizer, setup.config.schedule, epochs=3, steps_per_epoch=len(batches)
            )
            state = LoopState(part, optimizer, schedule, 2)
            step = StepConfig(seed=config.seed)
            callbacks = Callbacks(setup.set_mode)
            list(
                train_epochs(
                    state,
                    batches.epoch,
                    epochs=3,
                    step=step,
                    loss=LossConfig(),
                    callbacks=callbacks,
                )
            )
            held_out = training.part(fold.held_out, batch_size=8, training=False)
            each.append(evaluate(part, held_out.epoch(), num_classes=2).loss)
        losses[lr, weight_decay] = sum(each) / len(each)
    best = found(config)
    assert best is not None
    assert (best.lr, best.weight_decay) == min(losses, key=losses.__getitem__)
    assert (best.heads, best.folds) == (8, 5)


def test_a_run_trains_with_the_found_rates_and_its_config_repeats_it_without_a_search(
    make: Make, tmp_path: Path
) -> None:
    summary = train(make())
    rates = summary.found_rates
    assert rates is not None
    saved = load_config(tmp_path / "run" / "config.yaml", [f"output_dir={tmp_path / 'again'}"])
    assert (saved.optimizer.lr, saved.optimizer.weight_decay) == (rates.lr, rates.weight_decay)
    assert summary.stages[0].lr == rates.lr
    again = train(saved)
    assert again.found_rates is None
    first, second = (load_checkpoint(tmp_path / run / "last.pt")[0] for run in ("run", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_search_does_not_read_validation_images(make: Make, photos: Path) -> None:
    before = found(make())
    for path in (photos / "val").rglob("*.png"):
        path.write_bytes((photos / "train" / "class_0" / "0.png").read_bytes())
    after = found(make())
    assert before is not None
    assert after is not None
    assert (before.lr, before.weight_decay) == (after.lr, after.weight_decay)


def test_a_given_weight_decay_is_kept(make: Make) -> None:
    best = found(make(optimizer={"weight_decay": 0.02}))
    assert best is not None
    assert best.weight_decay == 0.02
    assert best.heads == len({lr for lr, _ in HEAD_RATES["sgd"]})


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"lr": 0.01}},
        {"optimizer": {"name": "radam"}},
        {"features": {"cache": "off"}},
        {"freeze": {"patterns": ["*", "!conv5.*"]}},
        {"train": {"accumulate": 2}},
        {"augment": {"policy": "crop_flip"}},
        {"augment": {"policy": "crop_flip", "views": 2}},
    ],
    ids=[
        *("lr", "optimizer", "no-cache", "more-than-the-head", "accumulate", "new-views"),
        "random-views",
    ],
)
def test_nothing_is_searched_where_it_does_not_apply(make: Make, sections: object) -> None:
    assert found(make(**sections)) is None  # type: ignore[arg-type]


def test_fewer_folds_are_trained_where_all_would_take_too_long(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    steps = 2 * 3 * 4 / 5  # of two epochs of three batches, on four fifths of the images
    monkeypatch.setattr(head_rates, "_STEP_S", 2 / (steps * 2.5))
    monkeypatch.setattr(head_rates, "_HEAD_MACS_PER_S", 1e30)
    fewer = found(config)
    assert fewer is not None
    assert fewer.folds == 2
    monkeypatch.setattr(head_rates, "_STEP_S", 10.0)
    assert found(config) is None


def test_a_search_changes_no_weight(make: Make) -> None:
    run_setup = set_up_single_stage(make(), SilentReporter(), what="the test")
    setup = prepare_stage(run_setup, SilentReporter())
    training = feature_batches_of(setup, SilentReporter(), training=True)
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    modes = [module.training for module in setup.model.modules()]
    assert find_rates(setup, training, run_setup.auto_rates, SilentReporter()) is not None
    assert all(torch.equal(t, before[name]) for name, t in setup.model.state_dict().items())
    assert [module.training for module in setup.model.modules()] == modes


def test_a_search_by_default_tries_these_rates_too(make: Make) -> None:
    config = prepare_stage(
        set_up_single_stage(make(), SilentReporter(), what="the test"), SilentReporter()
    ).config
    space = space_of(config, only_head=True, num_train=18)
    settings = settings_of(config, space, only_head=True, in_grid=False)
    assert {(one.lr, one.weight_decay) for one in settings} > set(HEAD_RATES["sgd"])
    narrow = config.with_values({"tune": {"lr": [0.05]}})
    settings = settings_of(narrow, space, only_head=True, in_grid=False)
    assert not {(one.lr, one.weight_decay) for one in settings[1:]} & set(HEAD_RATES["sgd"])
