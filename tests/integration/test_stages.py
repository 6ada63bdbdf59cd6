"""Tests of runs in stages: inherited settings, equivalence to single runs, resuming."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cache import new_cache
from helpers.messages import check_error, fails
from helpers.photos import draw_photos
from helpers.run_files import assert_same_run
from pydantic import ValidationError
from torch import nn
from torchvision import models

from finetune.checkpoints import checkpointer
from finetune.checkpoints.checkpoint import Metadata, load_checkpoint
from finetune.commands import train as train_command
from finetune.commands.compare import differing
from finetune.commands.dry_run import dry_run
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.freeze_report import freeze_report
from finetune.commands.report import report
from finetune.commands.show_batch import show_batch
from finetune.commands.train import train
from finetune.config.load import load_config, to_yaml
from finetune.config.optimizer import OPTIMIZERS
from finetune.config.schema import Config
from finetune.config.stages import stage_at, stage_configs
from finetune.core import signals
from finetune.core.errors import ConfigError, Interrupted
from finetune.freezing.frozen_hashes import FrozenHashes
from finetune.report.dry_run import render_dry_run
from finetune.report.freeze_report import render_freeze_report
from finetune.report.layout import plain
from finetune.report.train import render_train
from finetune.results.freeze import FreezeReport, StagedFreezeReport
from finetune.results.train import TrainSummary
from finetune.training import fit as epochs_module
from finetune.training import state, step
from finetune.training.evaluate import Evaluation
from finetune.training.optimizer_state import (
    OptimizerState,
    load_optimizer_tensors,
    optimizer_tensors,
)
from finetune.training.optimizers import build_optimizer

Make = Callable[..., Config]
Refuse = Callable[..., ConfigError]

HEAD = {"freeze": {"patterns": ["*"]}, "epochs": 1}
BLOCK = {"freeze": {"patterns": ["*", "!conv5.*"]}, "epochs": 1}
ALL = {"freeze": {"patterns": []}, "epochs": 1}
FORMS = {"precision": "float32", "memory_format": "contiguous", "compile": "off"}
MINIMAL = "model: {name: resnet18}\ndata: {root: photos}\n"


@pytest.fixture
def make(make_config: Make) -> Make:
    """Configs without a timing, and with batches whose norm layers see more than two images."""

    def make(**sections: object) -> Config:
        data = {"batch_size": 6, **sections.pop("data", {})}  # type: ignore[dict-item]
        return make_config(**{"runtime": FORMS, "data": data, **sections})

    return make


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainSummary]:
    """A run of three stages, and what it said; no test changes it."""
    folder = tmp_path_factory.mktemp("once")
    draw_photos(folder / "photos" / "train", count=9)
    draw_photos(folder / "photos" / "val", count=5)
    preprocessing = {"resize": 36, "crop": 32}
    values = {
        "model": {
            "name": "shufflenet_v2_x0_5",
            "weights": "none",
            "preprocessing": preprocessing,
        },
        "data": {"root": str(folder / "photos"), "batch_size": 6, "workers": 0},
        "augment": {"policy": "flip"},
        "runtime": FORMS,
        "stages": [{**HEAD, "epochs": 2}, BLOCK, ALL],
        "output_dir": str(folder / "run"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", new_cache(folder / "cache"))
        summary = train(Config.model_validate(values))
    return folder / "run", summary


@pytest.fixture
def run(trained_once: tuple[Path, TrainSummary], tmp_path: Path) -> Path:
    """A copy of its folder."""
    return Path(shutil.copytree(trained_once[0], tmp_path / "run"))


def checkpoint(config: Config, name: str) -> tuple[dict[str, torch.Tensor], Metadata]:
    return load_checkpoint(Path(config.output_dir) / name)


def lines_of(run: Path | str) -> list[dict[str, Any]]:
    text = Path(run, "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What a stage takes from the base


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "pets.yaml"
        path.write_text(MINIMAL + text, encoding="utf-8")
        return load_config(path, overrides)

    return load


@pytest.fixture
def refuse(load: Callable[..., Config]) -> Refuse:
    """The error that refuses a config, worded as in the golden file."""

    def refuse(text: str, *overrides: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        check_error(caught.value)
        return caught.value

    return refuse


def test_what_a_stage_leaves_out_comes_from_the_base_key_by_key(
    load: Callable[..., Config],
) -> None:
    config = load(
        "train: {epochs: 7}\noptimizer: {lr: 0.3, momentum: 0.5}\nfreeze: {norm_stats: update}\n"
        "augment: {policy: trivial, erasing: 0.5}\n"
        "stages:\n- {}\n- {epochs: 2, optimizer: {lr: 0.1}, augment: {erasing: 0.0},"
        " freeze: {patterns: []}}\n"
    )
    first, second = stage_configs(config)
    assert (first.train.epochs, first.optimizer.lr, first.augment.erasing) == (7, 0.3, 0.5)
    assert (second.train.epochs, second.optimizer.lr, second.augment.erasing) == (2, 0.1, 0.0)
    assert first.optimizer.momentum == second.optimizer.momentum == 0.5
    assert first.augment.policy == second.augment.policy == "trivial"
    assert first.freeze.norm_stats == second.freeze.norm_stats == "update"
    assert (first.freeze.patterns, second.freeze.patterns) == (("*",), ())


@pytest.mark.parametrize(
    ("base", "other"), [*itertools.permutations(("SGD", "adamw", "rmsprop"), 2)]
)
def test_nothing_of_another_optimizer_leaks_into_a_stage(make: Make, base: str, other: str) -> None:
    own = {"name": base, "lr": 0.5, "weight_decay": 0.25, "options": {"foreach": False}}
    if base != "adamw":
        own["momentum"] = 0.5
    own["groups"] = [{"match": ["fc.*"], "lr_scale": 2.0}, {"match": ["*.bias"], "lr": 0.25}]
    config = make(optimizer=own, stages=[{}, {"optimizer": {"name": other}}])
    first, second = stage_configs(config)
    assert first.optimizer.lr == 0.5
    assert second.optimizer == make(optimizer={"name": other}).optimizer


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "one_cycle", "plateau"])
def test_nothing_of_another_schedule_leaks_into_a_stage(make: Make, name: str) -> None:
    base = {"name": "step", "step_epochs": 3, "gamma": 0.5, "warmup_epochs": 0.0}
    config = make(schedule=base, stages=[{}, {"schedule": {"name": name}}])
    second = stage_configs(config)[1].schedule
    assert (
        second
        == make(schedule=base if name == "step" else {"name": name, "warmup_epochs": 0.0}).schedule
    )


def test_what_belongs_to_no_name_comes_from_the_base_all_the_same(make: Make) -> None:
    config = make(
        optimizer={
            "decay_norms_and_biases": True,
            "groups": [{"match": ["fc.*"], "lr_scale": 2.0}],
        },
        schedule={"name": "step", "warmup_epochs": 0.5},
        stages=[{}, {"schedule": {"name": "cosine"}, "optimizer": {"name": "AdamW"}}],
    )
    second = stage_configs(config)[1]
    assert second.schedule.warmup_epochs == 0.5
    assert second.optimizer.decay_norms_and_biases
    assert second.optimizer.groups[0].lr_scale == 2.0


def test_a_config_in_stages_reads_back_as_the_same_stages(make: Make, tmp_path: Path) -> None:
    config = make(
        optimizer={"name": "sgd", "lr": 0.5},
        stages=[HEAD, {**ALL, "optimizer": {"name": "adamw"}, "schedule": {"name": "step"}}],
    )
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert stage_configs(load_config(path))[1:] != ()
    for one, other in zip(stage_configs(config), stage_configs(load_config(path)), strict=True):
        assert one.plain() == other.plain()


def test_sections_made_in_python_are_taken_over_as_well(make: Make) -> None:
    base = make(optimizer={"lr": 0.5}, train={"epochs": 7})
    config = Config(**{**dict(base), "stages": [{}, {"optimizer": {"momentum": 0.1}}]})
    assert [one.optimizer.lr for one in stage_configs(config)] == [0.5, 0.5]
    assert [one.train.epochs for one in stage_configs(config)] == [7, 7]


def test_a_run_without_stages_is_one(make: Make) -> None:
    config = make()
    assert stage_configs(config) == (config,)
    assert "\nstages:" not in to_yaml(config)


@pytest.mark.parametrize(
    ("text", "key", "own"),
    [
        ("train: {epochs: 3}\nstages: [{epochs: 2}]\n", "train.epochs", "epochs"),
        (
            "optimizer: {lr: 0.1}\nstages: [{optimizer: {lr: 0.2}}, {optimizer: {name: adamw}}]\n",
            "optimizer.lr",
            "optimizer.lr, or another optimizer",
        ),
        (
            "freeze:\n  patterns: []\nstages: [{freeze: {patterns: []}}]\n",
            "freeze.patterns",
            "freeze.patterns",
        ),
    ],
)
def test_a_key_of_the_base_that_no_stage_takes_is_refused(
    refuse: Refuse, text: str, key: str, own: str
) -> None:
    error = refuse(text)
    assert (error.kind, error.key) == ("config.no_effect", key)
    assert own in error.what
    assert (error.source or "").endswith(f"pets.yaml:{4 if 'patterns' in text else 3}")


def test_a_key_of_the_base_that_a_stage_takes_is_not_refused(load: Callable[..., Config]) -> None:
    text = "optimizer: {name: adamw, lr: 0.1}\nstages: [{optimizer: {name: adamw}}]\n"
    assert stage_configs(load(text))[0].optimizer.lr == 0.1


def test_an_override_that_would_change_nothing_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(make(stages=[HEAD, ALL])), encoding="utf-8")
    with fails("config.no_effect", key="optimizer.lr", source="--set optimizer.lr=0.2"):
        load_config(path, ["optimizer.lr=0.2"])
    changed = load_config(path, ["stages.1.optimizer.lr=0.2", "stages.0.epochs=9"])
    assert [one.optimizer.lr for one in stage_configs(changed)] == ["auto", 0.2]
    assert [one.train.epochs for one in stage_configs(changed)] == [9, 1]


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("stages.2.epochs=1", "not_a_section"),
        ("stages.first.epochs=1", "not_a_section"),
        ("stages.1.epochs=0", "invalid_value"),
        ("stages.1.epoch=1", "unknown_key"),
        ("stages.1=3", "not_a_section"),
    ],
)
def test_an_override_of_a_stage_passes_the_validation_of_the_file(
    refuse: Refuse, override: str, kind: str
) -> None:
    error = refuse("stages: [{}, {}]\n", override)
    assert (error.kind, error.source) == (f"config.{kind}", f"--set {override}")


@pytest.mark.parametrize(
    ("stage", "kind", "key"),
    [
        ("{lr: 0.1}", "unknown_key", ".lr"),
        ("{patterns: []}", "unknown_key", ".patterns"),
        ("{runtime: {device: cpu}}", "unknown_key", ".runtime.device"),
        ("{freeze: {may_differ: true}}", "unknown_key", ".freeze.may_differ"),
        ("{optimizer: {momentum: 2}}", "invalid_value", ".optimizer.momentum"),
        ("{schedule: {gamma: 0.5}}", "no_effect", ".schedule.gamma"),
        (
            "{epochs: 2, schedule: {warmup_epochs: 3}}",
            "invalid_value",
            ".schedule.warmup_epochs",
        ),
        ("{optimizer: }", "empty_section", ".optimizer"),
        ("head", "not_a_section", ""),
    ],
)
def test_what_is_wrong_in_a_stage_is_said_with_its_place(
    refuse: Refuse, stage: str, kind: str, key: str
) -> None:
    error = refuse(f"stages:\n- {stage}\n")
    assert (error.kind, error.key) == (f"config.{kind}", f"stages.0{key}")
    assert (error.source or "").endswith("pets.yaml:4")


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {lr: high}\nstages: [{}, {}]\n",
        "optimizer: {lrr: 1}\nstages: [{}, {}]\n",
        "train: {epochs: no}\nstages: [{}, {}]\n",
        "freeze: {patterns: [3]}\nstages: [{}, {}]\n",
        "augment: {policy: none, views: 3}\nstages: [{}, {}]\n",
    ],
)
def test_what_is_wrong_in_the_base_is_said_once(refuse: Refuse, text: str) -> None:
    error = refuse(text)
    assert (error.source or "").endswith("pets.yaml:3")
    assert len(error.problems) == 1


@pytest.mark.parametrize("stages", ["", "[]"])
def test_stages_that_hold_none_are_refused(refuse: Refuse, stages: str) -> None:
    error = refuse(f"stages: {stages}\n")
    assert (error.kind, error.key) == ("config.empty_section", "stages")


def test_photos_that_stay_whole_are_cropped_in_no_stage(make: Make) -> None:
    with pytest.raises(ValidationError, match=r"stages.1.augment.policy: crop_flip would crop"):
        make(data={"fit": "pad"}, stages=[HEAD, {**ALL, "augment": {"policy": "crop_flip"}}])


def test_the_stage_of_an_epoch_is_counted_through() -> None:
    lengths = [2, 1, 3]
    values = {"model": {"name": "resnet18"}, "data": {"root": "x"}, "output_dir": "x"}
    stages = stage_configs(
        Config.model_validate({**values, "stages": [{"epochs": n} for n in lengths]})
    )
    assert [stage_at(stages, epoch) for epoch in range(1, 7)] == [0, 0, 1, 2, 2, 2]


# The run


def test_every_stage_is_stated_recorded_and_proven(
    trained_once: tuple[Path, TrainSummary],
) -> None:
    run, summary = trained_once
    first, second, third = summary.stages
    assert [(one.first_epoch, one.last_epoch) for one in summary.stages] == [(1, 2), (3, 3), (4, 4)]
    assert [line["epoch"] for line in lines_of(run)] == [1, 2, 3, 4]
    assert [line["stage"] for line in lines_of(run)] == [1, 1, 2, 3]
    assert first.trainable_parameters == 2050 < second.trainable_parameters
    assert (third.frozen_parameters, third.frozen_verified, third.cut_after) == (0, 0, None)
    assert first.frozen_verified > second.frozen_verified > 0
    assert first.forward_once > second.forward_once > 0
    assert (first.state_kept, second.state_kept, third.state_kept) == (0, 2, 5)
    assert (summary.epochs, summary.frozen_parameters) == (4, 0)
    text = plain(render_train(summary))
    assert re.search(r"Stage 2 +epoch 3 in ", text)
    assert "patterns * !conv5.*: " in text
    assert "no split: the whole network runs in every epoch" in text
    saved = json.loads(Path(run, "freeze-report.json").read_text(encoding="utf-8"))
    assert [len(one["patterns"]) for one in saved["stages"]] == [1, 2, 0]
    text = Path(run, "freeze-report.txt").read_text(encoding="utf-8")
    assert "Stage 2 of 3, 1 epoch" in text


def test_eval_gives_exactly_the_figures_of_the_checkpoints_stage(
    trained_once: tuple[Path, TrainSummary], run: Path
) -> None:
    _, summary = trained_once
    for name, scores in (("best.pt", summary.val), ("last.pt", summary.last)):
        _, metadata = load_checkpoint(run / name)
        result = evaluate_checkpoint(run / name)
        assert (result.top1, result.loss) == (scores.top1, scores.loss)
        stage = lines_of(run)[metadata.epoch - 1]["stage"]
        assert metadata.freeze_plan.patterns == summary.stages[stage - 1].patterns
        assert metadata.config.freeze.patterns == metadata.freeze_plan.patterns
        assert len(metadata.config.stages) == 3


def test_the_saved_config_runs_again_to_the_same_bits(make: Make, tmp_path: Path) -> None:
    cropped = {"augment": {"policy": "crop_flip"}}
    config = make(stages=[HEAD, ALL | cropped], runtime={})
    train(config)
    saved = load_config(
        Path(config.output_dir) / "config.yaml", [f"output_dir={tmp_path / 'again'}"]
    )
    assert "auto" not in to_yaml(saved)
    assert [one.augment.policy for one in saved.stages] == ["flip", "crop_flip"]
    train(saved)
    assert equal(checkpoint(config, "last.pt")[0], checkpoint(saved, "last.pt")[0])


def test_two_equal_stages_are_one_run_of_both_lengths(make: Make, tmp_path: Path) -> None:
    """Network, optimizer's state, order and views all go on."""
    common = {"schedule": {"name": "constant", "warmup_epochs": 0.0}}
    whole = make(**common, train={"epochs": 3}, freeze=BLOCK["freeze"])
    parts = make(
        **common,
        stages=[{**BLOCK, "epochs": 1}, {**BLOCK, "epochs": 2}],
        output_dir=str(tmp_path / "parts"),
    )
    train(whole)
    train(parts)
    assert equal(checkpoint(whole, "last.pt")[0], checkpoint(parts, "last.pt")[0])
    assert [one["loss"] for one in lines_of(whole.output_dir)] == [
        one["loss"] for one in lines_of(parts.output_dir)
    ]


def test_steps_of_two_stages_share_no_key(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = step.seed_generators

    def listening(device: torch.device, seed: int) -> None:
        seeds.append(seed)
        real(device, seed)

    monkeypatch.setattr(step, "seed_generators", listening)
    train(make(stages=[HEAD, {**HEAD, "epochs": 2}]))
    assert len(seeds) == 9
    assert len({*seeds}) == 9


def test_the_best_epoch_is_that_of_all_stages(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.9, 0.8, 0.9])
    real = epochs_module.evaluate

    def falling(*arguments: Any, **options: Any) -> Evaluation:
        return replace(real(*arguments, **options), top1=next(shares), loss=1.0)

    monkeypatch.setattr(epochs_module, "evaluate", falling)
    config = make(stages=[{**HEAD, "epochs": 2}, {**ALL, "epochs": 2}])
    summary = train(config)
    assert (summary.best_epoch, summary.val.top1, summary.last.top1) == (2, 0.9, 0.9)
    assert [one.best_epoch for one in summary.stages] == [2, 4]
    _, metadata = checkpoint(config, "best.pt")
    assert (metadata.epoch, metadata.freeze_plan.patterns) == (2, ("*",))


def test_what_a_stage_trained_and_the_next_freezes_is_computed_anew(
    make: Make, tmp_path: Path
) -> None:
    """The cache has features of the weights as they were: they are not those of this stage."""
    train(make(output_dir=str(tmp_path / "probe"), train={"epochs": 1}))
    config = make(
        stages=[{**ALL, "optimizer": {"lr": 0.05}}, HEAD],
        features={"cache": "disk"},
        augment={"policy": "flip"},
    )
    summary = train(config)
    assert summary.features is not None
    assert (summary.features.computed, summary.features.reused) == (18 * 2 + 10, 0)
    result = evaluate_checkpoint(Path(config.output_dir) / "last.pt")
    assert (result.top1, result.loss) == (summary.last.top1, summary.last.loss)


@pytest.mark.parametrize(
    ("stages", "where"),
    [([ALL, HEAD], "conv5.0.weight"), ([HEAD, BLOCK], "conv1.0.weight")],
)
def test_a_tensor_that_changed_in_the_stage_that_froze_it_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch, stages: list[Any], where: str
) -> None:
    real = checkpointer.save_checkpoint

    def careless(
        path: Path, state: dict[str, torch.Tensor], metadata: Metadata, **options: Any
    ) -> None:
        if metadata.epoch == 2:
            state = {**state, where: state[where] + 1e-3}
        real(path, state, metadata, **options)

    monkeypatch.setattr(checkpointer, "save_checkpoint", careless)
    with fails("result.frozen_changed"):
        train(make(stages=stages))


def test_what_no_stage_thaws_is_proven_over_the_whole_run() -> None:
    second = FrozenHashes({"b": "2", "c": "other"}, ("y",))
    whole = second.as_begun({"a": "1", "b": "2", "c": "3"})
    assert whole.sha256 == {"b": "2", "c": "3"}


def test_a_pattern_of_a_late_stage_is_checked_before_the_first_trains(make: Make) -> None:
    config = make(stages=[HEAD, BLOCK, {**ALL, "freeze": {"patterns": ["conv55.*"]}}])
    for command in (train, dry_run):
        with fails("config.pattern_matches_nothing", key="freeze.patterns", source="stage 3 of 3"):
            command(config)
    assert not Path(config.output_dir).exists()


def test_a_dry_run_predicts_each_stage_and_writes_nothing(make: Make) -> None:
    config = make(stages=[HEAD, {**ALL, "optimizer": {"lr": 0.01}}], augment={"policy": "flip"})
    result = dry_run(config)
    assert not Path(config.output_dir).exists()
    head, everything = result.stages
    assert head.predicted.fill_s is not None
    assert everything.predicted.fill_s is None
    assert [one["epochs"] for one in result.config["stages"]] == [1, 1]
    assert "optimizer" not in result.config
    text = plain(render_dry_run(result))
    assert re.search(r"Stage 2 +1 epoch; sgd, lr 0\.01", text)


def test_the_freeze_report_shows_every_stage_or_the_one_asked_for(make: Make) -> None:
    config = make(stages=[HEAD, {**BLOCK, "epochs": 3}])
    both = freeze_report(config, num_classes=2)
    assert isinstance(both, StagedFreezeReport)
    assert both.epochs == (1, 3)
    text = plain(render_freeze_report(both))
    assert "Stage 1 of 2, 1 epoch\n" in text
    assert "Stage 2 of 2, 3 epochs\n" in text
    one = freeze_report(config, num_classes=2, stage=2)
    assert isinstance(one, FreezeReport)
    assert [row.pattern for row in one.patterns] == ["*", "!conv5.*"]
    with fails("config.invalid_value", key="--stage"):
        freeze_report(config, num_classes=2, stage=3)


def test_show_batch_draws_with_the_augmentation_of_the_epochs_stage(
    make: Make, tmp_path: Path
) -> None:
    config = make(stages=[HEAD, {**ALL, "augment": {"policy": "trivial"}}])
    shown = [show_batch(config, tmp_path / "x.png", epoch=epoch) for epoch in (1, 2)]
    assert [one.augmentation for one in shown] == ["flip", "trivial"]
    with fails("config.invalid_value", key="--epoch"):
        show_batch(config, tmp_path / "x.png", epoch=3)


def test_the_page_shows_the_stages(run: Path) -> None:
    result = report(str(run))
    page = Path(result.files[0]).read_text(encoding="utf-8")
    assert '<table id="stages">' in page
    assert page.count('class="mark"') == 2 * 2
    assert "* !conv5.*" in page


def test_compare_names_what_differs_in_a_stage(make: Make) -> None:
    one, other = (
        make(stages=[HEAD, {**ALL, "optimizer": {"lr": lr, "momentum": 0.5}}]) for lr in (0.1, 0.2)
    )
    rows = differing([one, other])
    assert [(row.key, row.values) for row in rows] == [("stages.1.optimizer.lr", (0.1, 0.2))]


# What an optimizer remembers


def trained(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """An optimizer with a state of every parameter that trains."""
    config = Config.model_validate(
        {
            "model": {"name": "resnet18"},
            "data": {"root": "x"},
            "output_dir": "x",
            "optimizer": {"name": name, "lr": 0.01, **options},
        }
    )
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def handed_over(
    before: torch.optim.Optimizer, old: nn.Module, after: torch.optim.Optimizer, new: nn.Module
) -> int:
    memory = OptimizerState.of(before, old.named_parameters())
    plain = {name for name, _ in new.named_parameters()}
    return memory.hand_over(after, new.named_parameters(), plain=plain)


def networks() -> tuple[nn.Module, nn.Module]:
    return models.squeezenet1_1(num_classes=2), models.squeezenet1_1(num_classes=2)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_goes_to_the_parameter_of_the_same_name(name: str) -> None:
    old, new = networks()
    for key, parameter in old.named_parameters():
        parameter.requires_grad_(key.startswith("classifier"))
    before = trained(name, old)
    after = build_optimizer(new.named_parameters(), config_of(name))
    assert handed_over(before, old, after, new) == 2
    theirs, mine = old.classifier[1].bias, new.classifier[1].bias
    assert before.state[theirs].keys() == after.state[mine].keys()
    for key, value in before.state[theirs].items():
        assert torch.equal(value, after.state[mine][key])
        assert value is not after.state[mine][key]
    assert new.features[0].weight not in after.state


def config_of(name: str, **options: Any) -> Any:
    values = {"model": {"name": "resnet18"}, "data": {"root": "x"}, "output_dir": "x"}
    return Config.model_validate(
        {**values, "optimizer": {"name": name, "lr": 0.01, **options}}
    ).optimizer


def test_state_takes_the_layout_of_its_parameter() -> None:
    old, new = networks()
    new = new.to(memory_format=torch.channels_last)
    before = trained("sgd", old)
    after = build_optimizer(new.named_parameters(), config_of("sgd"))
    handed_over(before, old, after, new)
    weight = new.features[0].weight
    assert after.state[weight]["momentum_buffer"].stride() == weight.stride()


@pytest.mark.parametrize(("name", "options"), [("adamw", {}), ("sgd", {"momentum": 0.0})])
def test_state_of_another_kind_is_not_taken_over(name: str, options: dict[str, Any]) -> None:
    old, new = networks()
    before = trained("sgd", old)
    after = build_optimizer(new.named_parameters(), config_of(name, **options))
    assert handed_over(before, old, after, new) == 0
    assert not after.state


def small(name: str = "sgd") -> nn.Module:
    """A convolution, a matrix and their biases; for Muon, which moves matrices alone, two."""
    torch.manual_seed(0)
    if name == "muon":
        return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(6, 3))


def take_steps(optimizer: torch.optim.Optimizer, model: nn.Module, numbers: range) -> None:
    """Steps along gradients that follow from their number."""
    for number in numbers:
        draws = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws)
        optimizer.step()


@pytest.mark.parametrize("name", sorted(n for n, known in OPTIMIZERS.items() if not known.refused))
@pytest.mark.parametrize("stop", [2, 3])
def test_state_is_handed_over_after_a_resume_as_without_one(name: str, stop: int) -> None:
    """Stage one ends after three steps; an interruption before or at its end changes no bit."""

    def in_two_stages(*, stop: int | None) -> tuple[int, nn.Module, torch.optim.Optimizer]:
        model, config = small(name), config_of(name)
        first = build_optimizer(model.named_parameters(), config)
        take_steps(first, model, range(stop or 3))
        if stop is not None:
            memory = optimizer_tensors(first, model.named_parameters())
            first = build_optimizer(model.named_parameters(), config)
            load_optimizer_tensors(first, model.named_parameters(), *memory)
            take_steps(first, model, range(stop, 3))
        second = build_optimizer(model.named_parameters(), config)
        kept = handed_over(first, model, second, model)
        take_steps(second, model, range(3, 5))
        return kept, model, second

    kept, model, optimizer = in_two_stages(stop=None)
    again, resume_point, other = in_two_stages(stop=stop)
    assert again == kept == len(list(model.parameters()))
    assert equal(model.state_dict(), resume_point.state_dict())
    states = [
        optimizer_tensors(one, net.named_parameters())
        for one, net in ((optimizer, model), (other, resume_point))
    ]
    assert equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize("options", [{"nesterov": True}, {"foreach": True}])
def test_an_option_that_changes_no_state_keeps_it(options: dict[str, Any]) -> None:
    old, new = small(), small()
    before = trained("sgd", old)
    after = build_optimizer(new.named_parameters(), config_of("sgd", options=options))
    assert handed_over(before, old, after, new) == 4


@pytest.mark.parametrize(
    ("name", "options"), [("adam", {"amsgrad": True}), ("rmsprop", {"centered": True})]
)
def test_an_option_that_adds_state_begins_anew(name: str, options: dict[str, Any]) -> None:
    old, new = small(), small()
    before = trained(name, old)
    after = build_optimizer(new.named_parameters(), config_of(name, options=options))
    assert handed_over(before, old, after, new) == 0
    assert not after.state


def test_what_a_stage_hands_on_is_not_held_beside_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, and what the optimizer remembers of them, lie in memory once."""
    handed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    carried, remember = state.TrainState.carried, state.TrainState.optimizer_state
    take = step.Step.take

    def carrying(self: state.TrainState) -> Any:
        found = carried(self)
        handed.extend(weakref.ref(tensor) for tensor in found.state.values())
        return found

    def remembering(self: state.TrainState) -> Any:
        found = remember(self)
        handed.extend(weakref.ref(tensor) for tensor in found.tensors.values())
        return found

    def taking(*arguments: Any) -> None:
        alive.append(sum(ref() is not None for ref in handed))
        take(*arguments)

    monkeypatch.setattr(state.TrainState, "carried", carrying)
    monkeypatch.setattr(state.TrainState, "optimizer_state", remembering)
    monkeypatch.setattr(step.Step, "take", taking)
    summary = train(make(stages=[BLOCK, BLOCK]))
    assert summary.stages[1].state_kept > 0
    assert len(handed) > summary.stages[1].state_kept
    assert alive == [0] * 6


# Stopped and gone on with


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Lets a signal seem to have come before the n-th look for one while epochs are trained: three
    steps, two batches of the evaluation and one look behind it make an epoch."""
    real = train_command.run_epochs
    left: int | None = None
    training = False

    def asked() -> bool:
        nonlocal left
        if not training or left is None:
            return False
        left -= 1
        return left <= 0

    def run_epochs(*arguments: Any, **options: Any) -> Any:
        nonlocal training
        training = True
        try:
            return real(*arguments, **options)
        finally:
            training = False

    def arrange(number: int | None) -> None:
        nonlocal left
        left = number

    monkeypatch.setattr(signals, "asked", asked)
    monkeypatch.setattr(train_command, "run_epochs", run_epochs)
    return arrange


STAGES = [
    HEAD,
    {**BLOCK, "epochs": 2, "optimizer": {"name": "adamw"}},
    {**ALL, "optimizer": {"name": "adamw"}, "schedule": {"warmup_epochs": 0.5}},
]


def test_stopped_in_any_stage_it_goes_on_as_if_never_stopped(
    make: Make, tmp_path: Path, stop_at: Callable[[int | None], None]
) -> None:
    sections: dict[str, Any] = {"stages": STAGES, "train": {"ema": 0.9}}
    whole = make(**sections, output_dir=str(tmp_path / "whole"))
    parts = make(**sections, output_dir=str(tmp_path / "parts"))
    stop_at(None)
    expected = train(whole)
    for look, where in (
        (6, "after epoch 1"),
        (11, "in the evaluation of epoch 3"),
        (5, "in epoch 4, after batch 2"),
    ):
        stop_at(look)
        with pytest.raises(Interrupted, match=where):
            train(parts, resume=Path(parts.output_dir).exists())
    stop_at(None)
    summary = train(parts, resume=True)
    assert len(summary.resumed_at) == 3
    assert_same_run(Path(whole.output_dir), Path(parts.output_dir))
    for one, other in zip(expected.stages, summary.stages, strict=True):
        assert replace(one, elapsed_s=0) == replace(other, elapsed_s=0)
    assert summary.frozen_verified == expected.frozen_verified


RECIPE: dict[str, Any] = {"recipe": "head_then_all", "train": {"epochs": 2}}


@pytest.mark.parametrize("given", [{"stages": [HEAD, BLOCK]}, RECIPE], ids=["stages", "recipe"])
def test_a_run_in_stages_goes_on_by_the_config_in_its_folder(
    make: Make, stop_at: Callable[[int | None], None], given: dict[str, Any]
) -> None:
    """Which is ahead of the last checkpoint when a stage was stopped before its first step."""
    config = make(**given, runtime={})
    stop_at(7)
    with pytest.raises(Interrupted):
        train(config)
    folder = Path(config.output_dir)
    load_checkpoint(folder / "previous.pt")
    (folder / "previous.pt").replace(folder / "last.pt")
    stop_at(None)
    summary = train(load_config(folder / "config.yaml"), resume=True)
    assert summary.resumed_at == ("the start of epoch 2",)
    assert summary.last_epoch == 2


def test_a_finished_run_in_stages_goes_on_with_a_longer_last_stage(run: Path) -> None:
    def changed(epochs: int) -> Config:
        overrides = [f"output_dir={run}", f"stages.2.epochs={epochs}"]
        return load_config(run / "config.yaml", overrides)

    summary = train(changed(3), resume=True)
    spans = [(one.first_epoch, one.last_epoch) for one in summary.stages]
    assert spans == [(1, 2), (3, 3), (4, 6)]
    with fails("config.invalid_value", key="stages.2.epochs"):
        train(changed(1), resume=True)


def test_a_run_by_a_recipe_of_stages_goes_on_with_more_epochs(make: Make) -> None:
    """Those of the config, in its last stage; or those of the stage, by the config in its folder;
    and by the first config once more, which has not changed since."""
    train(make(**RECIPE))
    longer = make(recipe="head_then_all", train={"epochs": 4})
    summary = train(longer, resume=True)
    assert [(one.first_epoch, one.last_epoch) for one in summary.stages] == [(1, 1), (2, 4)]
    folder = Path(summary.run_dir)
    by_stage = load_config(folder / "config.yaml", ["stages.1.epochs=4"])
    assert train(by_stage, resume=True).last_epoch == 5
    assert train(longer, resume=True).last_epoch == 5


@pytest.mark.parametrize("epochs", [1, "auto"])
def test_epochs_that_leave_no_last_stage_are_refused(
    make: Make, stop_at: Callable[[int | None], None], epochs: int | str
) -> None:
    stop_at(2)
    with pytest.raises(Interrupted):
        train(make(**RECIPE))
    stop_at(None)
    with fails("config.invalid_value", key="train.epochs"):
        train(make(recipe="head_then_all", train={"epochs": epochs}), resume=True)


@pytest.mark.parametrize("override", ["stages.0.epochs=3", "stages.2.optimizer.lr=0.3"])
def test_another_past_is_refused(run: Path, override: str) -> None:
    other = load_config(run / "config.yaml", [f"output_dir={run}", override])
    with fails("config.changed", path="run"):
        train(other, resume=True)


def test_a_stage_that_ends_early_says_so_and_the_next_begins_behind_it(make: Make) -> None:
    config = make(
        stages=[{**HEAD, "epochs": 5}, BLOCK],
        train={"early_stopping": {"patience": 1, "min_delta": 0.9}},
    )
    first, second = train(config).stages
    assert (first.last_epoch, second.first_epoch) == (2, 3)
    assert first.stopped is not None
    assert second.stopped is None


def test_a_stage_begins_with_the_average_that_the_one_before_ended_with(make: Make) -> None:
    config = make(
        stages=[HEAD, {**HEAD, "optimizer": {"lr": 1e-12}}],
        train={"ema": 0.5},
        augment={"policy": "flip"},
    )
    states = []
    real = checkpointer.save_checkpoint

    def seeing(path: Path, state: dict[str, torch.Tensor], *rest: Any, **options: Any) -> None:
        if path.name == "last.pt":
            states.append(state["fc.weight"].clone())
        real(path, state, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "save_checkpoint", seeing)
        train(config)
    assert torch.allclose(states[0], states[-1], atol=1e-9)
