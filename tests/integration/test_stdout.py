"""Tests that stdout contains only a command's result, whatever libraries print."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
import yaml
from torchvision import models

from finetune.cli import app, support
from finetune.data.sources import open

ENTRY = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> CommandLine:
    """Calls the command line within this process: exit code, stdout, stderr."""
    monkeypatch.setattr(support, "debug_is_on", False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        code = app._run()
        captured = capsysbinary.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return call


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config whose weights are downloaded, from this very machine."""
    state = models.shufflenet_v2_x0_5().state_dict()
    torch.save(state, tmp_path / "saved.pth")
    digest = hashlib.sha256((tmp_path / "saved.pth").read_bytes()).hexdigest()
    file = (tmp_path / "saved.pth").rename(tmp_path / f"weights-{digest[:8]}.pth")
    monkeypatch.setattr(ENTRY.value, "url", file.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)  # lr-find draws its curve here
    content = {
        "model": {
            "name": "shufflenet_v2_x0_5",
            "weights": ENTRY.name,
            "preprocessing": {"resize": 36, "crop": 32},
        },
        "data": {"root": str(photos), "batch_size": 8, "workers": 0},
        "runtime": {"precision": "float32", "memory_format": "contiguous"},
        "train": {"epochs": 1},
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    "command",
    [["train"], ["train", "--dry-run"], ["lr-find", "--steps", "20"], ["tune", "--trials", "1"]],
    ids=" ".join,
)
def test_json_is_one_document_where_weights_are_downloaded(
    command: list[str], config: str, command_line: CommandLine
) -> None:
    code, out, err = command_line(*command, "--config", config, "--json")
    assert code == 0, err
    assert isinstance(json.loads(out), dict)
    assert "Downloading: " in err


def test_what_a_library_prints_goes_to_stderr(
    config: str, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open.Path.is_dir

    def loud(path: Path) -> bool:
        print("printed by a library")
        return real(path)

    monkeypatch.setattr(open.Path, "is_dir", loud)
    _, out, err = command_line("check-data", "--config", config, "--json")
    assert json.loads(out)["ok"] is False  # the drawn photos of train and val are alike
    assert "printed by a library" in err


def test_every_command_leaves_stdout_to_its_result() -> None:
    stack, commands = [typer.main.get_command(app.app)], []
    while stack:
        command = stack.pop()
        below = getattr(command, "commands", None)
        stack += below.values() if below else []
        commands += [] if below else [command]
    assert len(commands) > 10
    assert all(isinstance(command, support._Command) for command in commands)
