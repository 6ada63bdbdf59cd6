"""Tests of ``recipe: auto``: rungs, the best model, budgets and interrupts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.cache import new_cache
from helpers.command_line import CommandLine
from helpers.messages import fails
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands import ladder as ladder_command
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.commands.ladder import train_within
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import Interrupted, OutputError
from finetune.recipes.ladder import Cost, Step, rung_of
from finetune.report.ladder import render_ladder
from finetune.report.layout import plain
from finetune.results.train import LadderSummary, Scores
from finetune.tuning.search_space import with_backbones

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


def make_brief(patch: pytest.MonkeyPatch) -> None:
    """Let runs be short: two epochs of the head, one of short runs and two of longer ones."""
    patch.setattr(ladder_command._Ladder, "_predicted", lambda *_: (Cost(0.1, 0.1), True))
    patch.setattr(ladder_command, "_measured", lambda _: Cost(0.1, 0.1))
    patch.setattr(ladder_command, "MOST_EPOCHS", 2)
    patch.setattr("finetune.recipes.ladder.MOST_EPOCHS", 2)
    patch.setattr("finetune.recipes.ladder._SHORT", 0.0005)
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
            "train": {"budget": "600s"},
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
    """A ladder of five rungs."""
    folder = tmp_path_factory.mktemp("ladder")
    draw_photos(folder / "photos" / "train", count=8)  # no last batch of two
    draw_photos(folder / "photos" / "val", count=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", new_cache(folder / "cache"))
        make_brief(patch)
        return train_within(with_budget(folder / "photos", folder / "run"))


def test_with_time_both_candidates_are_trained_shortly_and_then_longer(
    climbed: LadderSummary,
) -> None:
    trained = [(rung.what, rung.epochs) for rung in climbed.rungs]
    assert trained[0] == ("linear_probe", 2)
    assert trained[1:3] == [("last_part", 3), ("everything", 3)]
    assert sorted(trained[3:]) == [("everything", 4), ("last_part", 4)]
    assert climbed.note == "more than 2 epochs are not tried"


def test_the_ladder_is_written_beside_its_runs(climbed: LadderSummary) -> None:
    folder = Path(f"{climbed.run_dir}-ladder")
    rungs = json.loads((folder / "ladder.json").read_text())["rungs"]
    assert [rung["number"] for rung in rungs] == [1, 2, 3, 4, 5]
    assert all((Path(rung["run_dir"]) / "best.pt").is_file() for rung in rungs)


def test_no_file_of_a_worse_run_is_left_in_the_run_directory(climbed: LadderSummary) -> None:
    best = Path(climbed.rungs[climbed.chosen - 1].run_dir)
    folder = Path(climbed.run_dir)
    names = {path.name for path in best.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    for name in ("best.pt", "last.pt", "metrics.jsonl", "freeze-report.json"):
        assert (folder / name).read_bytes() == (best / name).read_bytes()


def test_the_best_run_of_the_ladder_is_in_the_run_directory(climbed: LadderSummary) -> None:
    summary, folder = climbed, Path(climbed.run_dir)
    _, metadata = load_checkpoint(folder / "best.pt")
    best = max(summary.rungs, key=lambda rung: (rung.val.top1, -rung.val.loss))
    assert summary.chosen == best.number
    assert metadata.metrics["top1"] == best.val.top1
    assert json.loads((folder / "summary.json").read_text())["run_dir"] == str(folder)
    assert load_config(folder / "config.yaml").output_dir == str(folder)


def test_eval_knows_that_the_validation_photos_chose_the_run(
    climbed: LadderSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", new_cache(tmp_path / "cache"))
    folder = Path(climbed.run_dir)
    for name, chose in ((run_dir.BEST, True), (run_dir.LAST, False)):
        result = evaluate_checkpoint(folder / name, EvalOptions())
        said = [caveat.text for caveat in result.caveats if caveat.kind == "selection"]
        assert any("chose the run and the epoch:" in text for text in said) is chose


def test_what_the_runs_have_in_common_is_said_once() -> None:
    class Shown(RecordingReporter):
        def detail(self, text: str) -> None:
            details.append(text)

    details: list[str] = []
    shown = Shown()
    reporter = ladder_command._SaidOnce(shown)
    for _ in range(2):
        reporter.say("checked 28 images")
        reporter.warn("one is broken")
    reporter.say("epoch 1")
    assert (shown.said, shown.warned) == (["checked 28 images", "epoch 1"], ["one is broken"])
    assert details == ["checked 28 images"]


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
    assert "did not converge" in summary.note


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Interrupts a run of the ladder before it begins, or after its last epoch."""
    real = ladder_command.train

    def patch(number: int, *, after: bool = False) -> None:
        calls = 0

        def interrupted(given: Config, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                raise Interrupted("interrupted", exit_code=130)
            done = real(given, **options)
            if calls == number:
                raise Interrupted("interrupted", exit_code=130)
            return done

        monkeypatch.setattr(ladder_command, "train", interrupted)

    return patch


def test_an_interrupt_keeps_the_best_model_so_far(
    config: Config, interrupt: Callable[..., None]
) -> None:
    interrupt(2)
    with pytest.raises(Interrupted, match=r"is in .*/run: rung 1 \(linear_probe\)") as caught:
        train_within(config)
    assert caught.value.exit_code == 130
    _, metadata = load_checkpoint(Path(config.output_dir) / "best.pt")
    assert metadata.freeze_plan.patterns == ("*",)
    ladder = json.loads(Path(f"{config.output_dir}-ladder/ladder.json").read_text())
    assert (len(ladder["rungs"]), ladder["note"]) == (1, "the ladder was not finished")


def test_an_interrupted_rung_is_kept_if_it_is_the_best(
    config: Config, interrupt: Callable[..., None]
) -> None:
    interrupt(1, after=True)
    with pytest.raises(Interrupted, match=r"rung 1 \(linear_probe\)"):
        train_within(config)
    assert (Path(config.output_dir) / "best.pt").is_file()
    assert not Path(f"{config.output_dir}-ladder/ladder.json").exists()


def test_an_early_interrupt_does_not_publish_a_rung_of_an_earlier_ladder(
    config: Config, interrupt: Callable[..., None]
) -> None:
    train_within(config.with_values({"train.budget": "0.1s"}))
    best = Path(config.output_dir) / "best.pt"
    best.write_bytes(b"a better model")
    interrupt(1)
    with pytest.raises(Interrupted):
        train_within(config, overwrite=True)
    assert best.read_bytes() == b"a better model"


def test_rungs_of_an_earlier_ladder_are_removed(config: Config) -> None:
    config = config.with_values({"train.budget": "0.1s"})
    train_within(config)
    folder = Path(f"{config.output_dir}-ladder")
    (folder / "1-linear_probe").rename(folder / "5-everything")
    with fails("output.exists", worded=False):
        train_within(config.with_values({"output_dir": config.output_dir}))
    train_within(config, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["1-linear_probe", "ladder.json"]


def test_a_file_of_the_user_in_an_earlier_rung_is_kept(config: Config) -> None:
    config = config.with_values({"train.budget": "0.1s"})
    train_within(config)
    notes = Path(f"{config.output_dir}-ladder/1-linear_probe/notes.txt")
    notes.write_text("mine")
    train_within(config, overwrite=True)
    assert notes.read_text() == "mine"


def test_a_rung_in_which_another_process_trains_is_not_removed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_values({"train.budget": "0.1s"})
    train_within(config)
    rung = Path(f"{config.output_dir}-ladder/1-linear_probe")

    def taken(lock: Any) -> None:
        if lock._folder == rung:
            raise OutputError("another process is training in this folder", kind="output.locked")

    monkeypatch.setattr("finetune.checkpoints.run_lock.RunLock.take", taken)
    with fails("output.locked", worded=False):
        train_within(config, overwrite=True)
    assert (rung / "best.pt").is_file()


def test_a_run_is_copied_where_files_cannot_be_linked(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("finetune.checkpoints.run_dir.os.link", refuse)
    train_within(config.with_values({"train.budget": "0.1s"}))
    folder = Path(config.output_dir)
    rung = Path(f"{folder}-ladder/1-linear_probe")
    assert (folder / "best.pt").read_bytes() == (rung / "best.pt").read_bytes()
    assert not (folder / "best.pt").samefile(rung / "best.pt")


def test_a_failed_publication_keeps_the_model_that_was_there(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.with_values({"train.budget": "0.1s"})
    train_within(config)
    before = b"a better model"
    (Path(config.output_dir) / "best.pt").write_bytes(before)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune.checkpoints.run_dir.os.link", full)
    monkeypatch.setattr("finetune.checkpoints.run_dir.shutil.copyfileobj", full)
    with fails("output.unwritable", worded=False):
        train_within(config, overwrite=True)
    assert (Path(config.output_dir) / "best.pt").read_bytes() == before
    assert not [path for path in Path(config.output_dir).iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize("place", ["run", "run-ladder/1-linear_probe"])
def test_the_weights_are_not_replaced_by_what_begins_with_them(config: Config, place: str) -> None:
    train_within(config.with_values({"train.budget": "0.1s"}))
    weights = Path(config.output_dir).with_name(place.partition("/")[0]) / place.partition("/")[2]
    before = (weights / "best.pt").read_bytes()
    with fails("output.is_the_source", key="output_dir", worded=False):
        train_within(config.with_values({"model.weights": str(weights)}), overwrite=True)
    assert (weights / "best.pt").read_bytes() == before


def test_features_in_memory_count_in_every_rung(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ladder_command.dry_run

    def slow_to_fill(config: Config, **options: Any) -> Any:
        planned = real(config, **options)
        stages = [
            replace(stage, predicted=replace(stage.predicted, fill_s=1000.0))
            for stage in planned.stages
        ]
        return replace(planned, stages=tuple(stages))

    costs: list[Cost] = []
    monkeypatch.setattr(ladder_command, "dry_run", slow_to_fill)
    monkeypatch.setattr(
        ladder_command, "next_steps", lambda found, _: costs.append(found["last_part"]) or []
    )
    for cache in ("disk", "memory"):
        config = with_budget(photos, tmp_path / cache)
        train_within(config.with_values({"features.cache": cache}))
    on_disk, in_memory = (cost.fixed_s for cost in costs)
    assert 1000 < on_disk < 2000 < in_memory


def test_without_time_the_probe_is_the_result(config: Config) -> None:
    summary = train_within(config.with_values({"train.budget": "0.1s"}))
    assert [rung.what for rung in summary.rungs] == ["linear_probe"]
    assert summary.doubled is None
    assert summary.note == "the head alone took the budget"


def test_a_single_run_follows_where_short_runs_do_not_fit(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = [Step("last_part", 1)]
    monkeypatch.setattr(ladder_command, "next_steps", lambda *_: step)
    assert [rung.what for rung in train_within(config).rungs] == ["linear_probe", "last_part"]


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


def test_everything_is_not_timed_where_little_time_is_left(config: Config) -> None:
    summary = train_within(config.with_values({"train.budget": "90s"}))
    assert {rung.what for rung in summary.rungs} == {"linear_probe", "last_part"}


def test_what_cannot_fit_is_not_timed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(ladder_command._Ladder, "_predicted", timed)
    monkeypatch.setattr(ladder_command, "_feature_s", lambda _: 100.0)
    summary = train_within(config)
    assert [rung.what for rung in summary.rungs] == ["linear_probe"]
    assert "training more than the head would take at least" in summary.note


def test_nothing_follows_a_head_without_mistakes(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ladder_command, "_val", lambda _: Scores(top1=1, loss=0.1, balanced_accuracy=1, macro_f1=1)
    )
    summary = train_within(config)
    assert [rung.what for rung in summary.rungs] == ["linear_probe"]
    assert summary.note.startswith("every validation image is right")


def test_validation_images_are_required(config: Config, tmp_path: Path) -> None:
    root = Path(config.data.root) / "train"
    values = {"data.root": str(root), "data.val_fraction": 0.0}
    with fails("config.no_validation", key="data.val_fraction"):
        train_within(config.with_values(values))
    assert not Path(config.output_dir).exists()


def test_the_result_is_rendered(climbed: LadderSummary) -> None:
    text = plain(render_ladder(climbed))
    assert "the head, then everything" in text
    assert "10.0 min" in text


def test_budget_on_the_command_line_replaces_what_the_config_trains(
    config: Config, make_config: Make, tmp_path: Path, command_line: CommandLine
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(make_config(runtime=FIXED, freeze={"patterns": ["*", "!conv5.*"]})))
    done = command_line("train", "--config", str(file), "--budget", "90s", "--json")
    assert done.code == 0, done.err
    assert "freeze.patterns, train.epochs" in done.err
    document = json.loads(done.out)
    assert document["budget_s"] == 90
    assert document["rungs"][0]["what"] == "linear_probe"


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (("--budget", "15"), "--budget"),
        (("--budget", "15m", "--resume"), "--budget"),
        (("--set", "recipe=auto", "--set", "train={budget: 15m}", "--resume"), "--resume"),
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
    plain = make_config().plain()
    kept = {key: plain[key] for key in ("model", "data", "output_dir")}
    file.write_text(json.dumps(kept))
    done = command_line("train", "--config", str(file), *options)
    assert done.code == 2
    assert place in done.err


def test_dry_run_checks_the_first_run(
    config: Config, tmp_path: Path, command_line: CommandLine
) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(json.dumps(config.plain()))
    done = command_line("train", "--config", str(file), "--dry-run")
    assert done.code == 0, done.err
    assert "only its first run" in done.err
    assert not Path(config.output_dir).exists()
    root = f"{config.data.root}/train"
    options = ("--set", f"data.root={root}", "--set", "data.val_fraction=0")
    done = command_line("train", "--config", str(file), "--dry-run", *options)
    assert done.code == 2
    assert "data.val_fraction" in done.err


def test_backbones_are_compared_by_their_heads() -> None:
    config = Config.model_validate(
        {
            "model": {"name": "resnet18"},
            "recipe": "auto",
            "data": {"root": "photos"},
            "train": {"budget": "5m"},
            "output_dir": "runs/x",
        }
    )
    found = with_backbones(config, "resnet18,resnet50")
    assert [(one.model.name, one.recipe) for one in found] == [
        ("resnet18", "linear_probe"),
        ("resnet50", "linear_probe"),
    ]
