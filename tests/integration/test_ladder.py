"""Tests of ``recipe: auto``: rungs, the best model, budgets and interrupts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import CommandLine
from helpers.messages import fails
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands import ladder as ladder_command
from finetune.commands.ladder import train_within
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import Interrupted
from finetune.recipes.ladder import Cost, Step, rung_of
from finetune.report.ladder import render_ladder
from finetune.results.train import LadderSummary

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


def make_brief(patch: pytest.MonkeyPatch) -> None:
    """Let runs have two epochs in each stage, without timing what more could be trained."""
    patch.setattr(ladder_command._Ladder, "_predicted", lambda *_: Cost(0.1, 0.1))
    patch.setattr("finetune.recipes.ladder._MOST", 2)
    patch.setattr("finetune.recipes.auto.heuristics.epochs_for", lambda _: 2)


def with_budget(photos: Path, folder: Path) -> Config:
    return Config.model_validate(
        {
            "model": {
                "name": "shufflenet_v2_x0_5",
                "weights": "none",
                "preprocessing": {"resize": 36, "crop": 32},
            },
            "recipe": "auto",
            "data": {"root": str(photos), "batch_size": 4, "workers": 0},
            "train": {"budget": "60s"},
            "runtime": FIXED,
            "output_dir": str(folder),
        }
    )


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    make_brief(monkeypatch)
    return with_budget(photos, tmp_path / "run")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> LadderSummary:
    """A ladder of three rungs."""
    folder = tmp_path_factory.mktemp("ladder")
    draw_photos(folder / "photos" / "train", count=9)
    draw_photos(folder / "photos" / "val", count=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        make_brief(patch)
        return train_within(with_budget(folder / "photos", folder / "run"))


def rungs_of(folder: Path) -> list[dict[str, Any]]:
    rungs: list[dict[str, Any]] = json.loads((folder / "ladder.json").read_text())["rungs"]
    return rungs


def test_with_time_the_ladder_has_three_rungs(climbed: LadderSummary) -> None:
    assert [rung.what for rung in climbed.rungs] == ["linear_probe", "last_part", "everything"]
    assert len(rungs_of(Path(f"{climbed.run_dir}-ladder"))) == 3


def test_the_best_run_of_the_ladder_is_in_the_run_directory(climbed: LadderSummary) -> None:
    summary, folder = climbed, Path(climbed.run_dir)
    _, metadata = load_checkpoint(folder / "best.pt")
    best = max(summary.rungs, key=lambda rung: (rung.val.top1, -rung.val.loss))
    assert summary.chosen == best.number
    assert metadata.metrics["top1"] == best.val.top1
    assert json.loads((folder / "summary.json").read_text())["run_dir"] == str(folder)
    assert load_config(folder / "config.yaml").output_dir == str(folder)


def test_every_rung_that_thaws_begins_with_the_probe(climbed: LadderSummary) -> None:
    first, second = (Path(climbed.rungs[at].run_dir) / "metrics.jsonl" for at in (0, 1))
    times = {"elapsed_s", "eval_s"}
    probe, start = (
        [
            {key: value for key, value in json.loads(line).items() if key not in times}
            for line in path.read_text().splitlines()[:2]
        ]
        for path in (first, second)
    )
    assert probe == start


def test_a_rung_that_diverges_leaves_the_probe(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(*arguments: Any) -> Config:
        found = rung_of(*arguments)
        return found.with_values({"stages.1.optimizer": {"name": "sgd", "lr": 1e30}})

    monkeypatch.setattr(ladder_command, "rung_of", wild)
    reporter = RecordingReporter()
    summary = train_within(config, reporter=reporter)
    assert [rung.what for rung in summary.rungs] == ["linear_probe"]
    assert (Path(config.output_dir) / "best.pt").is_file()
    assert any("last_part" in warning for warning in reporter.warned)


def test_an_interrupt_keeps_the_best_model_so_far(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ladder_command.train

    def interrupted(given: Config, **options: Any) -> Any:
        if given.recipe is None:
            raise Interrupted("interrupted in epoch 3", exit_code=130)
        return real(given, **options)

    monkeypatch.setattr(ladder_command, "train", interrupted)
    with pytest.raises(Interrupted, match="best model so far, rung 1") as caught:
        train_within(config)
    assert caught.value.exit_code == 130
    _, metadata = load_checkpoint(Path(config.output_dir) / "best.pt")
    assert metadata.freeze_plan.patterns == ("*",)


def test_an_interrupted_rung_is_kept_if_it_is_the_best(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ladder_command.train

    def interrupted(given: Config, **options: Any) -> Any:
        real(given, **options)
        raise Interrupted("interrupted in epoch 2", exit_code=143)

    monkeypatch.setattr(ladder_command, "train", interrupted)
    with pytest.raises(Interrupted, match=r"rung 1 \(linear_probe"):
        train_within(config)
    assert (Path(config.output_dir) / "best.pt").is_file()


def test_an_existing_run_is_not_replaced(config: Config) -> None:
    config = config.with_values({"train.budget": "0.1s"})
    train_within(config)
    before = (Path(config.output_dir) / "best.pt").read_bytes()
    with fails("output.exists", key="output_dir"):
        train_within(config)
    assert (Path(config.output_dir) / "best.pt").read_bytes() == before
    train_within(config, overwrite=True)


def test_without_time_the_probe_is_the_result(config: Config) -> None:
    summary = train_within(config.with_values({"train.budget": "0.1s"}))
    assert [rung.what for rung in summary.rungs] == ["linear_probe"]
    assert summary.doubled is None
    assert summary.note == "the head alone took the budget"


def test_a_single_run_follows_where_short_runs_do_not_fit(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = [Step("everything", 1)]
    monkeypatch.setattr(ladder_command, "next_steps", lambda *_: step)
    assert [rung.what for rung in train_within(config).rungs] == ["linear_probe", "everything"]


def test_predicted_times_are_positive(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[Any] = []
    monkeypatch.setattr(
        ladder_command, "next_steps", lambda found, _: costs.extend(found.values()) or []
    )
    train_within(with_budget(photos, tmp_path / "run"))
    assert len(costs) == 2
    assert all(cost.fixed_s > 0 and cost.epoch_s > 0 for cost in costs)


def test_validation_images_are_required(config: Config, tmp_path: Path) -> None:
    root = Path(config.data.root) / "train"
    values = {"data.root": str(root), "data.val_fraction": 0.0}
    with fails("config.no_validation", key="data.val_fraction"):
        train_within(config.with_values(values))
    assert not Path(config.output_dir).exists()


def test_the_result_is_rendered(climbed: LadderSummary) -> None:
    text = render_ladder(climbed)
    assert "the head, then everything" in text
    assert "60 s" in text


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def test_budget_on_the_command_line_replaces_what_the_config_trains(
    config: Config, make_config: Make, tmp_path: Path, command_line: CommandLine
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(make_config(runtime=FIXED, freeze={"patterns": ["*", "!conv5.*"]})))
    done = command_line("train", "--config", str(file), "--budget", "60s", "--json")
    assert done.code == 0, done.err
    assert "freeze.patterns, train.epochs" in done.err
    document = json.loads(done.out)
    assert document["budget_s"] == 60
    assert document["rungs"][0]["what"] == "linear_probe"


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (("--budget", "15"), "--budget"),
        (("--budget", "15m", "--resume"), "--resume"),
    ],
)
def test_a_budget_that_cannot_be_used_is_an_error(
    make_config: Make,
    tmp_path: Path,
    command_line: CommandLine,
    options: tuple[str, ...],
    place: str,
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(make_config()))
    done = command_line("train", "--config", str(file), *options)
    assert done.code == 2
    assert place in done.err
