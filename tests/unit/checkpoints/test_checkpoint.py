"""Tests of reading and writing checkpoints; other files are rejected."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.messages import fails

from finetune.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.core.errors import CheckpointError, OutputError


@pytest.fixture
def trained(make_config: Callable[..., Config]) -> Path:
    config = make_config(train={"epochs": 1})
    train(config)
    return Path(config.output_dir) / "best.pt"


def rewrite(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_it_holds_tensors_and_json_strings(trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    assert content.keys() == {"model", "metadata", "limits"}
    assert content["limits"].keys() == {"record", "tensors"}
    assert json.loads(content["limits"]["record"])["rate"] == 0.05
    metadata = json.loads(content["metadata"])
    assert metadata["format"] == 2
    assert metadata["class_names"] == ["class_0", "class_1"]
    assert metadata["preprocessing"]["crop"] == 32
    assert metadata["freeze_plan"]["patterns"] == ["*"]
    assert metadata["versions"].keys() == {"finetune", "torch", "torchvision", "pillow", "python"}


def test_it_reads_back_equal(trained: Path, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(trained)
    save_checkpoint(tmp_path / "copy.pt", state, metadata)
    again, same = load_checkpoint(tmp_path / "copy.pt")
    assert same == metadata
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_a_newer_format_is_refused_by_name(trained: Path) -> None:
    def make_newer(content: dict[str, object]) -> None:
        metadata = json.loads(str(content["metadata"]))
        content["metadata"] = json.dumps(metadata | {"format": 3})

    rewrite(trained, make_newer)
    with fails("checkpoint.newer_format"):
        load_checkpoint(trained)


def test_metadata_that_lacks_a_part_is_refused(trained: Path) -> None:
    def lose(content: dict[str, object]) -> None:
        metadata = json.loads(str(content["metadata"]))
        del metadata["class_names"]
        content["metadata"] = json.dumps(metadata)

    rewrite(trained, lose)
    with fails("checkpoint.damaged"):
        load_checkpoint(trained)


def test_a_missing_file_offers_its_neighbour(trained: Path) -> None:
    with fails("checkpoint.not_found"):
        load_checkpoint(trained.with_name("bets.pt"))


def test_a_folder_is_refused_with_the_file_to_give(trained: Path) -> None:
    with fails("checkpoint.not_a_file"):
        load_checkpoint(trained.parent)


def test_a_truncated_file_is_refused(trained: Path) -> None:
    trained.write_bytes(trained.read_bytes()[:-1000])
    with fails("checkpoint.damaged"):
        load_checkpoint(trained)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_bare_state_dict_is_refused_with_where_it_belongs(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with fails("checkpoint.foreign"):
        load_checkpoint(tmp_path / "x.pt")


class Payload:
    """Runs code when unpickled by anyone careless."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(canary)))
    torch.save({"model": Payload(canary)}, tmp_path / "y.pt")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name)
    assert not canary.exists()


def test_a_failed_save_keeps_the_old_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trained.read_bytes()
    state, metadata = load_checkpoint(trained)

    def disk_full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OutputError):
        save_checkpoint(trained, state, metadata)
    assert trained.read_bytes() == before
    assert not list(trained.parent.glob(".tmp-*"))
