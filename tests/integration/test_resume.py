"""Tests of ``train --resume``: bit for bit equality, and rejected changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import fails
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter
from helpers.run_files import assert_same_run, records_of, tensors_of

from finetune.checkpoints import checkpointer
from finetune.checkpoints.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core import signals
from finetune.core.errors import (
    ConfigError,
    DataError,
    Interrupted,
    ResultError,
)
from finetune.features import engine
from finetune.report.layout import plain
from finetune.report.train import render_train
from finetune.training import fit, resume, state, step

Make = Callable[..., Config]
StopIn = Callable[..., None]

FORM = {
    "precision": "float32",
    "memory_format": "contiguous",
    "live_precision": "float32",
    "live_memory_format": "contiguous",
}
EVERYTHING: dict[str, Any] = {"patterns": []}
LAST_BLOCK: dict[str, Any] = {"patterns": ["*", "!features.12.*"]}
WITH_NORMS = {"name": "shufflenet_v2_x0_5"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that no test changes: two classes, 18 to train on and 10 to validate with."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_photos(folder / "train", count=9)
    draw_photos(folder / "val", count=5, seed=1)
    return folder


@pytest.fixture
def config(drawn: Path, tmp_path: Path) -> Make:
    """Configs of a run of three epochs of five batches, nothing left to timing."""

    def make(name: str = "run", **sections: Any) -> Config:
        values: dict[str, Any] = {
            "model": {
                "name": "squeezenet1_1",  # the fewest modules, and dropout before the head
                "weights": "none",
                "preprocessing": {"resize": 36, "crop": 32},
            },
            "data": {"root": str(drawn), "batch_size": 4, "workers": 0},
            "train": {"epochs": 3},
            "optimizer": {"lr": 3e-4},
            "runtime": FORM,
            "output_dir": str(tmp_path / name),
        }
        for key, section in sections.items():
            both = isinstance(section, dict) and key in values
            values[key] = {**values[key], **section} if both else section
        return Config.model_validate(values)

    return make


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a head, three epochs, that was saved after each step; no test changes it."""
    folder = tmp_path_factory.mktemp("finished")
    make = config.__wrapped__(drawn, folder)  # type: ignore[attr-defined]
    train(make(train={"checkpoint_minutes": 1e-9}))
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, where `config` has its run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def stop_in(monkeypatch: pytest.MonkeyPatch) -> StopIn:
    """Lets a signal come in the n-th step, evaluation or saving of an epoch from now, or none."""
    left: dict[str, int] = {}

    def watched(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            left[place] = left.get(place, 0) - 1
            if left[place] == 0:
                signals._Signals.asked = signal.SIGINT
            return real(*arguments, **options)

        return wrapper

    monkeypatch.setattr(step.Step, "take", watched("step", step.Step.take))
    monkeypatch.setattr(fit, "evaluate", watched("evaluation", fit.evaluate))
    monkeypatch.setattr(
        checkpointer.Checkpointer, "keep", watched("saving", checkpointer.Checkpointer.keep)
    )
    monkeypatch.setattr(signals._Signals, "asked", 0)

    def arrange(place: str | None, number: int = 1) -> None:
        left.clear()
        signals._Signals.asked = 0
        if place is not None:
            left[place] = number

    return arrange


def stopped(config: Config, *, resume: bool = False) -> str:
    try:
        train(config, resume=resume)
    except Interrupted as error:  # not kept, and with it the workers of its frames
        return str(error)
    pytest.fail("it was not stopped")


# As if never stopped

KINDS: dict[str, dict[str, Any]] = {
    "everything with norms, sgd": {"model": WITH_NORMS, "freeze": EVERYTHING},
    "a head on kept features, adamw": {"optimizer": {"name": "adamw"}},
    "averaged, clipped, accumulated, warmed up": {
        "model": WITH_NORMS,
        "freeze": {"patterns": ["*", "!conv5.*"]},
        "train": {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2},
        "schedule": {"warmup_epochs": 1.5},
    },
    "mixed, workers": {
        "freeze": EVERYTHING,
        "augment": {"policy": "trivial", "mixup": 0.2, "cutmix": 1.0},
        "data": {"workers": 1},
    },
    "drawn classes, drops": {
        "data": {"balance": "sampler"},
        "augment": {"policy": "crop_flip"},
        "schedule": {"name": "step", "step_epochs": 1, "gamma": 0.5},
    },
    "stages": {
        "stages": [
            {"epochs": 1, "optimizer": {"lr": 3e-4}},
            {"epochs": 2, "freeze": LAST_BLOCK, "optimizer": {"lr": 1e-4}},
        ],
    },
    "stages, adafactor": {
        "stages": [
            {"epochs": 1, "optimizer": {"name": "adafactor"}},
            {"epochs": 2, "freeze": LAST_BLOCK, "optimizer": {"name": "adafactor"}},
        ],
    },
    "rates that fall when nothing gets better": {
        "train": {"monitor": "macro_f1", "early_stopping": {"patience": 2, "min_delta": 0.5}},
        "schedule": {"name": "plateau", "patience": 1},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_it_goes_on_as_if_never_stopped(
    config: Make, stop_in: StopIn, kind: str
) -> None:
    """Three stops in one run: in an epoch, in an evaluation, and in an epoch again."""
    whole, parts = config("whole", **KINDS[kind]), config("parts", **KINDS[kind])
    stop_in(None)
    train(whole)
    stop_in("step", 2)
    assert "in epoch 1, after batch" in stopped(parts)
    stop_in("evaluation")
    assert "in the evaluation of epoch 1" in stopped(parts, resume=True)
    stop_in("step", 2)
    assert "in epoch 2, after batch" in stopped(parts, resume=True)
    stop_in(None)
    summary = train(parts, resume=True)
    assert len(summary.resumed_at) == 3
    assert_same_run(Path(whole.output_dir), Path(parts.output_dir))


def test_a_run_in_stages_goes_on_behind_a_stage_and_within_the_next(
    config: Make, stop_in: StopIn
) -> None:
    sections = {**KINDS["stages"], "train": {"ema": 0.9}}
    whole, parts = config("whole", **sections), config("parts", **sections)
    stop_in(None)
    train(whole)
    stop_in("saving")
    assert "after epoch 1" in stopped(parts)
    stop_in("evaluation")
    assert "in the evaluation of epoch 2" in stopped(parts, resume=True)
    stop_in(None)
    summary = train(parts, resume=True)
    assert [(stage.first_epoch, stage.last_epoch) for stage in summary.stages] == [(1, 1), (2, 3)]
    assert_same_run(Path(whole.output_dir), Path(parts.output_dir))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number"),
    [
        *(("step", number) for number in range(1, 16)),
        *((place, number) for place in ("evaluation", "saving") for number in range(1, 4)),
    ],
)
def test_stopped_at_every_place(config: Make, stop_in: StopIn, place: str, number: int) -> None:
    whole, parts = config("whole", freeze=EVERYTHING), config("parts", freeze=EVERYTHING)
    stop_in(None)
    train(whole)
    stop_in(place, number)
    stopped(parts)
    stop_in(None)
    train(parts, resume=True)
    assert_same_run(Path(whole.output_dir), Path(parts.output_dir))


@pytest.mark.slow
def test_adapters_go_on_as_they_would_have(config: Make, stop_in: StopIn) -> None:
    pytest.importorskip("peft")
    sections: dict[str, Any] = {
        "model": {"name": "swin_t"},
        "adapt": {"lora": {"rank": 2}},
        "train": {"epochs": 2},
    }
    whole, parts = config("whole", **sections), config("parts", **sections)
    stop_in(None)
    train(whole)
    stop_in("step", 3)
    stopped(parts)
    stop_in(None)
    train(parts, resume=True)
    assert_same_run(Path(whole.output_dir), Path(parts.output_dir))


def test_a_run_that_was_ended_early_stays_so(config: Make, stop_in: StopIn) -> None:
    stop_in(None)
    ended = config(train={"epochs": 5, "early_stopping": {"patience": 1, "min_delta": 0.9}})
    summary = train(ended)
    assert (summary.last_epoch, train(ended, resume=True).last_epoch) == (2, 2)


def test_the_number_of_workers_may_change(config: Make, stop_in: StopIn) -> None:
    sections: dict[str, Any] = {"augment": {"policy": "crop_flip"}, "train": {"epochs": 2}}
    whole = config("whole", **sections)
    stop_in(None)
    train(whole)
    stop_in("step", 7)
    stopped(config("parts", data={"workers": 2}, **sections))
    stop_in(None)
    train(config("parts", **sections), resume=True)
    assert_same_run(Path(whole.output_dir), Path(config("parts").output_dir))


def test_the_message_gives_the_command_that_goes_on(config: Make, stop_in: StopIn) -> None:
    stop_in("step", 2)
    assert stopped(config()) == (
        "interrupted in epoch 1, after batch 2; saved. Resume with: finetune train --resume "
        f"{config().output_dir}"
    )


def test_a_run_that_is_killed_goes_on_at_its_last_checkpoint_within_an_epoch(
    config: Make, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after each step (`train.checkpoint_minutes`), killed behind the third batch."""
    often = config(train={"checkpoint_minutes": 1e-9})
    killed = tmp_path / "killed"
    real = state.TrainState.checkpoint

    def checkpoint(self: state.TrainState, *, evaluated: bool) -> Any:
        if self.loop.progress.batches == 4:
            shutil.copytree(often.output_dir, killed)
        return real(self, evaluated=evaluated)

    monkeypatch.setattr(state.TrainState, "checkpoint", checkpoint)
    train(often)
    monkeypatch.undo()
    training = read_checkpoint(killed / "last.pt").training
    assert training is not None
    assert (training.record.position.epoch, training.record.position.batch) == (1, 3)
    summary = train(often.model_copy(update={"output_dir": str(killed)}), resume=True)
    assert summary.resumed_at == ("epoch 1, after batch 3",)
    assert "Resumed    once, at epoch 1, after batch 3" in plain(render_train(summary))
    assert_same_run(finished, killed)


def test_a_last_checkpoint_of_the_middle_of_an_epoch_can_be_evaluated(
    config: Make, stop_in: StopIn
) -> None:
    stop_in("step", 2)
    stopped(config())
    stop_in(None)
    last = Path(config().output_dir) / "last.pt"
    assert evaluate_checkpoint(last).num_images == 10
    assert load_checkpoint(last)[1].metrics == {}


def test_calibrating_the_last_checkpoint_leaves_the_run_able_to_go_on(
    config: Make, run: Path
) -> None:
    evaluate_checkpoint(run / "last.pt", EvalOptions(calibrate=True))
    assert read_checkpoint(run / "last.pt").metadata.temperature is not None
    assert train(config(train={"epochs": 4}), resume=True).epochs == 4


def test_nothing_is_timed_again(
    config: Make, stop_in: StopIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of arithmetic stands in the checkpoint's config, not in what a machine finds now."""
    auto = dict.fromkeys(FORM, "auto")
    given = config(freeze=LAST_BLOCK, runtime=auto)
    stop_in("step", 2)
    stopped(given)
    stop_in(None)
    real = engine.choose_format
    seen = []

    def choose(runtime: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(runtime)
        return real(runtime, *arguments, **options)

    monkeypatch.setattr(engine, "choose_format", choose)
    train(given, resume=True)
    assert len(seen) == 2
    assert all("auto" not in (it.precision, it.memory_format, it.compile) for it in seen)


# Longer than before


def test_more_epochs_go_on_with_the_rates_of_the_longer_run(config: Make, run: Path) -> None:
    """Cosine: behind epoch 3 the rate is where a run of 6 has it, not at the end of one of 3."""
    summary = train(config(train={"epochs": 6}), resume=True)
    assert (summary.epochs, summary.resumed_at) == (6, ("the start of epoch 4",))
    long = config("long", train={"epochs": 6})
    train(long)
    rates = [record["lr"] for record in records_of(Path(long.output_dir))]
    gone_on = [record["lr"] for record in records_of(run)]
    assert gone_on[3:] == rates[3:]
    assert len(gone_on) == 6
    assert load_config(run / "config.yaml").train.epochs == 6


def test_with_rates_that_do_not_depend_on_the_end_a_longer_run_is_the_same_run(
    config: Make,
) -> None:
    constant = {"name": "constant"}
    train(config("parts", train={"epochs": 1}, schedule=constant))
    train(config("parts", train={"epochs": 3}, schedule=constant), resume=True)
    train(config("whole", train={"epochs": 3}, schedule=constant))
    parts, whole = (Path(config(name).output_dir) for name in ("parts", "whole"))
    assert_same_run(parts, whole)


@pytest.mark.usefixtures("run")
def test_fewer_epochs_than_were_done_are_refused(config: Make) -> None:
    with fails("config.invalid_value", key="train.epochs"):
        train(config(train={"epochs": 2}), resume=True)


def test_a_finished_run_has_nothing_left_to_do_and_says_what_it_was(
    config: Make, run: Path
) -> None:
    first = json.loads((run / "summary.json").read_text())
    again = train(config(), resume=True)
    assert (vars(again.val), vars(again.last)) == (first["val"], first["last"])
    assert again.best_epoch == first["best_epoch"]
    assert again.elapsed_s > 0


# Refused


@pytest.mark.parametrize(
    ("sections", "kind", "key"),
    [
        ({"optimizer": {"lr": 0.5}}, "config.changed", "optimizer.lr"),
        ({"data": {"batch_size": 8}}, "config.changed", "data.batch_size"),
        ({"train": {"ema": 0.9}}, "config.changed", "train.ema"),
        ({"model": {"name": "mobilenet_v2"}}, "config.changed", "model.name"),
        ({"freeze": LAST_BLOCK}, "config.network_changed", None),
    ],
)
def test_another_training_is_refused_with_what_differs(
    config: Make, run: Path, sections: dict[str, Any], kind: str, key: str | None
) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    with fails(kind, path=run) as caught:
        train(config(**sections), resume=True)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_change_that_does_not_fit_the_rest_is_refused_in_words(
    config: Make, stop_in: StopIn
) -> None:
    """A warm-up that was chosen for as many epochs as there were is longer than those now."""
    given = config(freeze=EVERYTHING, train={"epochs": 10})
    stop_in("step", 2)
    stopped(given)
    stop_in(None)
    shorter = given.with_values({"train.epochs": 1})
    with fails("config.changed"):
        train(shorter, resume=True)


def test_epochs_that_would_be_chosen_anew_are_refused(config: Make, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    with fails("config.invalid_value", key="train.epochs"):
        train(config(train={"epochs": "auto"}), resume=True)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_patterns_take_the_place_of_a_recipe_that_froze_the_same(
    config: Make, stop_in: StopIn
) -> None:
    given = config(recipe="linear_probe")
    stop_in("step", 2)
    stopped(given)
    stop_in(None)
    saved = Path(given.output_dir) / "config.yaml"
    overrides = ["freeze.patterns=['features.*']"]
    assert train(load_config(saved, overrides), resume=True).last_epoch == 3
    assert train(given, resume=True).last_epoch == 3


def test_an_optimizer_given_beside_a_recipe_that_chose_another_is_refused(
    config: Make, stop_in: StopIn
) -> None:
    chosen = config().model_dump(exclude_unset=True, exclude={"optimizer"}) | {"recipe": "full"}
    stop_in("step", 2)
    stopped(Config.model_validate(chosen))
    stop_in(None)
    given = Config.model_validate(chosen | {"optimizer": {"name": "sgd"}})
    with fails("config.changed", worded=False) as caught:
        train(given, resume=True)
    assert "optimizer.name" in [problem.key for problem in caught.value.problems]
    assert train(Config.model_validate(chosen), resume=True).last_epoch == 3


def test_a_weight_decay_that_an_earlier_version_wrote_for_auto_is_no_difference(
    config: Make,
) -> None:
    now = config(optimizer={"lr": "auto"})
    assert now.optimizer.weight_decay == "auto"
    before = config(optimizer={"lr": "auto", "weight_decay": 0.0})
    assert resume._changes(before, now) == {}
    other = config(optimizer={"lr": "auto", "weight_decay": 0.3})
    assert resume._changes(other, now) == {("optimizer", "weight_decay"): (0.3, "auto")}


def test_an_optimizer_that_an_earlier_version_wrote_as_its_default_is_no_difference(
    config: Make,
) -> None:
    stages = [{"epochs": 1}, {"epochs": 1, "optimizer": {"layer_decay": 0.8}}]
    earlier = {"name": "sgd", "lr": "auto", "momentum": 0.9}
    for sections in ({}, {"stages": stages}):
        now = config(optimizer={"lr": "auto"}, **sections)
        before = config(optimizer=earlier, **sections)
        assert now.optimizer.name == "auto"
        assert resume._changes(before, now) == {}
    other = config(optimizer={**earlier, "momentum": 0.5})
    now = config(optimizer={"lr": "auto"})
    assert resume._changes(other, now) == {("optimizer", "momentum"): (0.5, None)}


@pytest.mark.usefixtures("run")
def test_what_is_for_tune_alone_is_no_difference(config: Make) -> None:
    """The section comes, and it goes again."""
    given = config(train={"epochs": 4}, tune={"lr": [0.1, 0.01]})
    assert train(given, resume=True).last_epoch == 4
    assert train(config(train={"epochs": 4}), resume=True).last_epoch == 4


@pytest.mark.usefixtures("run")
def test_all_differences_are_shown_at_once(config: Make) -> None:
    with fails("config.changed") as caught:
        train(config(seed=1, optimizer={"lr": 0.5}), resume=True)
    assert [problem.key for problem in caught.value.problems] == ["optimizer.lr", "seed"]


@pytest.mark.usefixtures("run")
def test_patterns_in_other_words_that_freeze_the_same_are_no_difference(config: Make) -> None:
    other = config(freeze={"patterns": ["features.*"]}, train={"epochs": 4})
    assert train(other, resume=True).epochs == 4


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    """Photos that a test may change."""
    shutil.copytree(drawn, tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.usefixtures("run")
def test_photos_may_lie_elsewhere(config: Make, own: Path) -> None:
    moved = config(train={"epochs": 4}, data={"root": str(own)})
    assert train(moved, resume=True).epochs == 4


@pytest.mark.usefixtures("run")
def test_another_image_is_refused_with_the_class_it_is_in(config: Make, own: Path) -> None:
    shutil.copy(own / "train" / "class_1" / "0.png", own / "train" / "class_1" / "new.png")
    with fails("data.changed"):
        train(config(data={"root": str(own)}), resume=True)


@pytest.mark.usefixtures("run")
def test_an_image_that_was_written_anew_in_the_same_size_is_said(config: Make, own: Path) -> None:
    """Its content may be another; or it was only copied without its time."""
    same, other = RecordingReporter(), RecordingReporter()
    moved = config(data={"root": str(own)})
    train(moved, resume=True, reporter=same)
    os.utime(own / "train" / "class_1" / "0.png", (0, 0))
    train(moved, resume=True, reporter=other)
    told = [text for text in other.warned if "other modification times" in text]
    assert len(told) == 1
    assert same.warned == []


@pytest.mark.usefixtures("run")
def test_a_renamed_image_is_refused(config: Make, own: Path) -> None:
    (own / "val" / "class_0" / "0.png").rename(own / "val" / "class_0" / "00.png")
    with fails("data.changed"):
        train(config(data={"root": str(own)}), resume=True)


@pytest.mark.usefixtures("run")
def test_another_class_is_refused_by_name(config: Make, own: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(own / split / "class_0", own / split / "class_9")
    with pytest.raises((DataError, ConfigError), match="class_9"):
        train(config(data={"root": str(own)}), resume=True)


def test_an_image_that_broke_meanwhile_never_begins_the_run_anew(
    config: Make, run: Path, own: Path
) -> None:
    """With skip, a new run would begin again without it."""
    skip = {"on_unreadable": "skip"}
    shutil.rmtree(run)
    train(config(train={"epochs": 1}, data={"root": str(own), **skip}))
    path = own / "train" / "class_0" / "3.png"
    content = bytearray(path.read_bytes())
    content[50:-20] = bytes(len(content) - 70)
    path.write_bytes(content)
    with fails("data.changed"):
        train(config(train={"epochs": 2}, data={"root": str(own), **skip}), resume=True)
    assert len(records_of(run)) == 1


def test_the_weights_file_is_not_needed_again(config: Make, finished: Path, tmp_path: Path) -> None:
    state, _ = load_checkpoint(finished / "last.pt")
    weights = tmp_path / "own.pth"
    torch.save(state, weights)
    train(config(train={"epochs": 1}, model={"weights": str(weights)}))
    weights.unlink()
    again = config(train={"epochs": 2}, model={"weights": str(weights)})
    assert train(again, resume=True).epochs == 2


def test_frozen_tensors_that_are_not_the_first_ones_are_refused(config: Make, run: Path) -> None:
    checkpoint = read_checkpoint(run / "last.pt")
    checkpoint.model["features.0.weight"] += 1e-6
    parts = (checkpoint.model, checkpoint.metadata)
    save_checkpoint(run / "last.pt", *parts, training=checkpoint.training)
    with fails("result.frozen_changed"):
        train(config(), resume=True)


# What there is to go on from


def test_a_folder_without_a_run_never_starts_from_nothing(config: Make) -> None:
    folder = Path(config().output_dir)
    with fails("output.no_run", key="output_dir"):
        train(config(), resume=True)
    folder.mkdir()
    with fails("output.no_run", key="output_dir"):
        train(config(), resume=True)
    assert not list(folder.iterdir())


def test_what_holds_something_else_is_no_place_to_begin_a_run(config: Make, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "todo.txt").touch()
    file = notes / "todo.txt"
    for place, kind in ((notes, "output.no_run"), (file, "output.not_a_folder")):
        with fails(kind, path=place) as refused:
            train(config(output_dir=str(place)), resume=True)
        assert "without --resume" not in str(refused.value)


def test_a_run_that_was_killed_before_its_first_checkpoint_says_what_to_do(
    config: Make, run: Path
) -> None:
    for name in ("best.pt", "last.pt", "previous.pt"):
        (run / name).unlink()
    with fails("checkpoint.none_usable"):
        train(config(), resume=True)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_that_is_done_says_how_more_epochs_come(config: Make, run: Path) -> None:
    heard = RecordingReporter()
    train(config(), resume=True, reporter=heard)
    heard.said.clear()
    train(config(), resume=True, reporter=heard)
    assert heard.said[0] == (
        f"resuming from {run / 'last.pt'}: all epochs are done; add more with --set train.epochs=N"
    )


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(
    config: Make, run: Path, finished: Path
) -> None:
    flip(run / "last.pt")
    heard = RecordingReporter()
    summary = train(config(), resume=True, reporter=heard)
    assert heard.warned[0].startswith(f"{run / 'last.pt'}: damaged: ")
    assert heard.said[0] == f"resuming from {run / 'previous.pt'}: epoch 3, after batch 5"
    assert summary.resumed_at == ("epoch 3, after batch 5",)
    assert_same_run(run, finished)


def test_where_both_are_damaged_nothing_begins_anew(config: Make, run: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        flip(run / name)
    with fails("checkpoint.none_usable"):
        train(config(), resume=True)
    assert len(records_of(run)) == 3


def test_a_run_of_an_older_finetune_cannot_go_on_and_says_so(config: Make, run: Path) -> None:
    content = torch.load(run / "last.pt", weights_only=True)
    metadata = json.loads(content["metadata"]) | {"format": 1}
    old = {"model": content["model"], "metadata": json.dumps(metadata)}
    torch.save(old, run / "last.pt")
    with fails("checkpoint.no_train_state"):
        train(config(), resume=True)


def test_what_killed_saves_left_is_removed(config: Make, run: Path) -> None:
    for name in (".tmp-abcd1234", ".tmp-abcd1234-before"):
        (run / name).write_bytes(b"half")
    (run / "notes.txt").write_text("mine")
    train(config(), resume=True)
    assert not list(run.glob(".tmp-*"))
    assert (run / "notes.txt").exists()


def test_lines_of_epochs_that_come_again_are_cut_from_the_metrics(
    config: Make, stop_in: StopIn
) -> None:
    stop_in("step", 7)
    stopped(config())
    folder = Path(config().output_dir)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2}\n{"epo')
    stop_in(None)
    train(config(), resume=True)
    assert [record["epoch"] for record in records_of(folder)] == [1, 2, 3]


# The best checkpoint


def test_a_lost_best_is_made_again_where_the_last_is_it(config: Make) -> None:
    first = train(config(train={"epochs": 1}))
    best = Path(config().output_dir) / "best.pt"
    before = best.read_bytes()
    flip(best)
    again = train(config(train={"epochs": 1}), resume=True)
    assert again.val == first.val
    assert torch.load(best, weights_only=True)["metadata"] in before.decode("latin-1")


def best_of(run: Path) -> int:
    ranks = [(r["val"]["top1"], -r["val"]["loss"], -r["epoch"]) for r in records_of(run)]
    return -int(max(ranks)[2])


def make_best(run: Path, epoch: int) -> None:
    """Let the best be of another epoch, as when the last checkpoint behind it was lost."""
    state, metadata = load_checkpoint(run / "best.pt")
    save_checkpoint(run / "best.pt", state, metadata.model_copy(update={"epoch": epoch}))


def make_perfect(run: Path, epoch: int) -> None:
    """Let an epoch have been the best."""
    checkpoint = read_checkpoint(run / "last.pt")
    assert checkpoint.training is not None
    record = checkpoint.training.record
    records = list(record.records)
    val = {**records[epoch - 1]["val"], "top1": 1.0, "loss": 0.0}
    records[epoch - 1] = {**records[epoch - 1], "val": val}
    changed = record.model_copy(update={"records": tuple(records)})
    training = replace(checkpoint.training, record=changed)
    save_checkpoint(run / "last.pt", checkpoint.model, checkpoint.metadata, training=training)


def test_a_best_that_stood_in_for_a_lost_one_stays_the_best(config: Make, run: Path) -> None:
    """A later epoch must be better than the saved best, not than the lost one."""
    kept = best_of(run)
    make_perfect(run, 1 if kept > 1 else 2)
    heard = RecordingReporter()
    summary = train(config(train={"epochs": 4}), resume=True, reporter=heard)
    assert heard.warned == []
    assert summary.best_epoch in (kept, 4)
    assert load_checkpoint(run / "best.pt")[1].epoch == summary.best_epoch


def test_a_lost_best_is_lost_to_the_next_stage_as_well(config: Make, stop_in: StopIn) -> None:
    first, second = KINDS["stages"]["stages"]
    given = config(stages=[{**first, "epochs": 2}, {**second, "epochs": 1}])
    stop_in("saving", 2)
    stopped(given)
    stop_in(None)
    folder = Path(given.output_dir)
    make_perfect(folder, 1)
    flip(folder / "best.pt")
    summary = train(given, resume=True)
    assert summary.best_epoch in (2, 3)
    assert load_checkpoint(folder / "best.pt")[1].epoch == summary.best_epoch


def test_a_best_that_is_ahead_stays_for_the_same_epochs_come_again(config: Make, run: Path) -> None:
    make_best(run, 99)
    heard = RecordingReporter()
    assert train(config(), resume=True, reporter=heard).best_epoch == best_of(run)
    assert heard.warned == []


def test_a_best_of_epochs_that_will_not_come_again_is_replaced_aloud(
    config: Make, run: Path
) -> None:
    """The run grows, so that its rates are others from here on: the last epoch stands in."""
    make_perfect(run, 1)  # so that the best was not the last one
    make_best(run, 99)
    heard = RecordingReporter()
    summary = train(config(train={"epochs": 4}), resume=True, reporter=heard)
    assert "contains epoch 99" in heard.warned[0]
    assert "replaced by epoch 3" in heard.warned[0]
    assert summary.best_epoch in (3, 4)
    assert load_checkpoint(run / "best.pt")[1].epoch == summary.best_epoch


# Averages


def test_the_average_is_what_is_evaluated_and_saved_and_the_training_stays_as_it_is(
    config: Make,
) -> None:
    sections = {"model": WITH_NORMS, "freeze": EVERYTHING}
    plain, given = config("plain", **sections), config(train={"ema": 0.9}, **sections)
    train(plain)
    summary = train(given)
    for name, recorded in (("best.pt", summary.val), ("last.pt", summary.last)):
        result = evaluate_checkpoint(Path(given.output_dir) / name)
        assert (result.top1, result.loss) == (recorded.top1, recorded.loss)
    tensors = tensors_of(Path(given.output_dir) / "last.pt")
    without = tensors_of(Path(plain.output_dir) / "last.pt")
    weights = {name for name in tensors if name.startswith("weights/")}
    assert "weights/conv1.1.running_mean" in weights
    assert all(torch.equal(tensors[n], without[n.removeprefix("weights/")]) for n in weights)
    assert not torch.equal(tensors["weights/fc.weight"], tensors["fc.weight"])


def test_frozen_tensors_are_no_part_of_the_average(config: Make) -> None:
    given = config(freeze=LAST_BLOCK, train={"ema": 0.9, "epochs": 1})
    assert train(given).frozen_verified > 0
    tensors = tensors_of(Path(given.output_dir) / "last.pt")
    averaged = {name.split("/")[1] for name in tensors if name.startswith("weights/")}
    assert {name.split(".")[1] for name in averaged} == {"12", "1"}


# Numbers that are none, and options without effect


def test_a_number_that_is_none_names_rate_batch_and_images(config: Make, drawn: Path) -> None:
    given = config(optimizer={"lr": 1e30, "momentum": 0.0}, freeze=EVERYTHING)
    with pytest.raises(ResultError) as caught:
        train(given)
    text = str(caught.value)
    assert text.startswith("epoch 1, batch 2: the training loss is not a finite number, at a lear")
    assert text.count(str(drawn / "train")) == 3
    assert "and 1 more. Try a lower optimizer.lr than 1e+30" in text
    assert not list(Path(given.output_dir).glob("*.pt"))


def test_a_weight_that_is_none_is_never_saved(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of the second epoch spoils a weight: no later loss of that epoch can tell."""
    real = torch.optim.SGD.step
    steps = 0

    def spoil(self: torch.optim.SGD, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        result = real(self, *arguments)
        if steps == 10:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("nan")
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    with fails("result.not_finite") as caught:
        train(config(freeze=EVERYTHING))
    assert (caught.value.source or "").startswith("epoch 2")
    for name in ("best.pt", "last.pt"):
        path = Path(config().output_dir) / name
        assert read_checkpoint(path).metadata.epoch == 1
        assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(path).values())


def test_more_batches_a_step_than_an_epoch_has_are_refused(config: Make) -> None:
    with fails("config.invalid_value", key="train.accumulate"):
        train(config(train={"accumulate": 6}))


def test_the_saved_config_states_what_was_asked_for_alone(config: Make) -> None:
    text = to_yaml(config(train={"accumulate": 2, "ema": 0.5}))
    assert "accumulate: 2" in text
    assert "ema: 0.5" in text
    assert "clip_norm" not in text
