"""Tests of ``track``: what each tracker's own library reads back, offline."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.messages import fails
from helpers.reporters import RecordingReporter

from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.training import trackers
from finetune.training.trackers import Results, TrackedRun, flat, numbers_of

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def records(config: Config) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    text = (Path(config.output_dir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class Recording:
    """A tracker that keeps what it is told, or fails at one of its calls."""

    made: list[Recording]
    fails_at = ""

    def __init__(self, run: TrackedRun) -> None:
        self._may_fail("init")
        self.run = run
        self.epochs: dict[int, Mapping[str, float]] = {}
        self.final: Results | None = None
        self.names: list[str] = []
        self.failed: bool | None = None
        type(self).made.append(self)

    def _may_fail(self, call: str) -> None:
        if self.fails_at == call:
            raise OSError("the server is gone\nand more")

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        self._may_fail("epoch")
        self.epochs[number] = figures

    def results(self, results: Results) -> None:
        self._may_fail("results")
        assert all(path.read_bytes()[:4] == b"\x89PNG" for path in results.pictures.values())
        self.final = results
        self.names = sorted(results.pictures)

    def close(self, *, failed: bool) -> None:
        self._may_fail("close")
        self.failed = failed


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recording]]:
    """The runs that a tracker was told of, in place of TensorBoard."""
    monkeypatch.setattr(Recording, "made", [], raising=False)
    monkeypatch.setattr(trackers, "_TRACKERS", {"tensorboard": Recording})
    monkeypatch.setattr(trackers, "_PACKAGES", {"tensorboard": "json"})
    return Recording.made


@pytest.fixture
def config(make_config: Make) -> Config:
    return make_config(runtime=FIXED, track={"to": ["tensorboard"]})


def test_a_tracker_gets_config_epochs_and_results(
    config: Config, recorded: list[Recording]
) -> None:
    summary = train(config)
    (tracker,) = recorded
    assert tracker.run.name == "run"
    assert tracker.run.config["model.name"] == "shufflenet_v2_x0_5"
    expected = {line["epoch"]: dict(numbers_of(line)) for line in records(config)}
    assert tracker.epochs == expected
    assert tracker.final is not None
    assert summary.val is not None
    assert tracker.final.figures["val.top1"] == summary.val.top1
    assert (tracker.names, tracker.final.checkpoint, tracker.failed) == ([], None, False)


def test_pictures_and_the_checkpoint_are_sent_where_asked(
    config: Config, recorded: list[Recording]
) -> None:
    train(config.with_values({"track.pictures": True, "track.checkpoint": True}))
    (tracker,) = recorded
    assert tracker.names == ["batch", "confusion", "curves"]
    assert tracker.final is not None
    assert tracker.final.checkpoint == Path(config.output_dir) / "best.pt"


def test_a_resumed_run_sends_all_of_its_epochs(config: Config, recorded: list[Recording]) -> None:
    train(config.with_values({"track": None}))
    train(config.with_values({"train.epochs": 3}), resume=True)
    assert sorted(recorded[0].epochs) == [1, 2, 3]


@pytest.mark.parametrize("call", ["init", "epoch", "results", "close"])
def test_a_tracker_that_fails_never_ends_a_run(
    config: Config, recorded: list[Recording], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Recording, "fails_at", call)
    reporter = RecordingReporter()
    assert train(config, reporter=reporter).last_epoch == 2
    said = [text for text in reporter.warned if text.startswith("track: ")]
    assert said == ["track: tensorboard failed and gets nothing more: the server is gone"]


def test_a_run_that_fails_is_closed_as_failed(
    config: Config, recorded: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.commands.train._summary", broken)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert recorded[0].failed is True


def test_a_missing_package_is_named_before_anything_is_read(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_PACKAGES", {"tensorboard": "no_such_package"})
    with fails("config.missing_package", key="track.to"):
        train(config.with_values({"data.root": "absent"}))


def test_values_are_flattened() -> None:
    assert flat({"a": {"b": [1, 2], "c": "x"}, "d": None}) == {
        "a.b": "[1, 2]",
        "a.c": "x",
        "d": None,
    }
    assert dict(numbers_of({"a": {"b": 2, "c": True}, "d": "x"})) == {"a.b": 2.0}


@needs("tensorboard")
def test_event_files_hold_the_metrics(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config)
    events = EventAccumulator(str(Path(config.output_dir) / "tensorboard"))
    events.Reload()
    for key in ("loss", "val.top1"):
        found = {event.step: event.value for event in events.Scalars(key)}
        lines = records(config)
        assert found == pytest.approx(
            {line["epoch"]: dict(numbers_of(line))[key] for line in lines}
        )


@needs("mlflow")
def test_a_local_store_of_mlflow_holds_the_metrics(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    train(config.with_values({"track.to": ["mlflow"], "track.checkpoint": True}))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("finetune")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "shufflenet_v2_x0_5"
    history = client.get_metric_history(run.info.run_id, "val.top1")
    assert [metric.value for metric in history] == [line["val"]["top1"] for line in records(config)]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["best.pt"]


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases, which has the format of LevelDB's log."""
    block, header, place = 32768, 7, 7
    parts: list[bytes] = []
    while place < len(content):
        left = block - place % block
        if left < header:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + header])
        parts.append(content[place + header : place + header + length])
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@needs("wandb")
def test_weights_and_biases_writes_an_offline_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(config.with_values({"track.to": ["wandb"]}))
    (file,) = Path(config.output_dir).rglob("run-*.wandb")
    found: dict[int, float] = {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "val.top1" in items:
            found[int(items["epoch"])] = items["val.top1"]
    assert found == {line["epoch"]: line["val"]["top1"] for line in records(config)}


@needs("trackio")
def test_trackio_stores_the_metrics_locally(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(config.with_values({"track.to": ["trackio"]}))
    from trackio.sqlite_storage import SQLiteStorage

    logged = SQLiteStorage.get_logs("finetune", "run")
    found = {line["epoch"]: line["val.top1"] for line in logged if "val.top1" in line}
    assert found == {line["epoch"]: line["val"]["top1"] for line in records(config)}
