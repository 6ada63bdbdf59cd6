"""Tests that malicious checkpoints run no code and use no more memory than their size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.counting import Count
from helpers.hostile_checkpoints import HOSTILE, Payload, make_all
from helpers.paths import HELPERS, REPOSITORY
from helpers.small_checkpoint import save_small
from torchvision import models

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.cli import app, support
from finetune.config.load import to_yaml
from finetune.config.model_registry import BUILDERS
from finetune.config.schema import Config

Make = Callable[..., Config]
MORE_MIB = 400
"""Than torch and the commands themselves take: the smallest bomb among them is of 2,048."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def answers(make_config: Make, tmp_path: Path, photos: Path, canary: Path) -> dict[str, Any]:
    """What a process of its own answers to all of them."""
    config = make_config()
    file = tmp_path / "pets.yaml"
    file.write_text(to_yaml(config))
    folder = tmp_path / "hostile"
    save_small(folder / "sound.pt", config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about forms of tensors that it gives up
        make_all(folder, canary)
    # What torchvision's detectors are built upon, and would unpickle.
    backbones = tmp_path / "torch" / "hub" / "checkpoints"
    backbones.mkdir(parents=True)
    for entry in models.ResNet50_Weights:
        torch.save(Payload(canary), backbones / entry.url.rpartition("/")[2])
    program = HELPERS / "hostile_checkpoints.py"
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(photos), str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path), "TORCH_HOME": str(tmp_path / "torch")},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_no_hostile_checkpoint_does_harm(
    answers: dict[str, Any], canary: Path, tmp_path: Path, count: Count
) -> None:
    lost = {}
    for what, answer in answers["answers"].items():
        said = [line for line in answer["said"].splitlines() if line.startswith("finetune: ")]
        one_line = answer["said"].splitlines()[-1:] == said and len(said) == 1
        codes = (4, 5) if what.endswith(" weights") else (5,)
        # As weights it is taken for what it seems: a run of our own, or somebody's tensors.
        if not one_line or answer["code"] not in codes or "Traceback" in answer["said"]:
            lost[what] = answer
    tried = len(answers["answers"])
    count("hostile-checkpoints", tried=tried, held=tried - len(lost))
    assert not lost
    ran = canary.exists() or bool(answers["started"])
    count("hostile-payloads", tried=len(HOSTILE), held=0 if ran else len(HOSTILE))
    assert not ran, answers["started"]
    grown = answers["peak_mib"] - answers["before_mib"]
    count("hostile-memory", tried=1, held=int(grown < MORE_MIB))
    assert grown < MORE_MIB
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_there_are_twelve_and_more_of_them() -> None:
    assert len(HOSTILE) >= 12


def test_the_sound_one_is_sound(make_config: Make, tmp_path: Path) -> None:
    assert load_checkpoint(save_small(tmp_path / "sound.pt", make_config()))[1].epoch == 1


# torchvision's downloads


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path) -> Path:
    """torch's download cache, every file of torchvision's builders exchanged for a payload."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in models.list_models():
        for entry in models.get_model_weights(name):
            torch.save(Payload(canary), folder / entry.url.rpartition("/")[2])
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(support, "debug_is_on", False)
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    return app._run()


def test_a_poisoned_download_cache_runs_nothing(
    make_config: Make,
    tmp_path: Path,
    poisoned: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: Count,
) -> None:
    tried = []
    for name in ("resnet18", "squeezenet1_1", "densenet121", "googlenet", "vit_b_16"):
        config = tmp_path / f"{name}.yaml"
        model = {"name": name, "weights": "DEFAULT", "preprocessing": "auto"}
        config.write_text(to_yaml(make_config(model=model)))
        for command in (["train"], ["train", "--dry-run"], ["freeze-report"]):
            code = run(monkeypatch, command[0], "--config", str(config), *command[1:])
            said = capsys.readouterr().err
            tried.append((name, command, code, said))
    refused = [(code, said) for _, command, code, said in tried if command != ["freeze-report"]]
    held = all(code == 4 and "damaged or modified" in said for code, said in refused)
    held = held and not canary.exists()
    count("poisoned-cache", tried=len(tried), held=len(tried) if held else 0)
    assert held, tried


def test_every_download_of_torchvision_has_a_hash_in_its_name() -> None:
    urls = {entry.url for name in BUILDERS for entry in models.get_model_weights(name)}
    assert [url for url in urls if not re.search(r"-[0-9a-f]{8,}\.pth$", url)] == []


# What is installed


def floor_of(package: str) -> tuple[int, ...]:
    text = (REPOSITORY / "pyproject.toml").read_text()
    found = re.search(rf'^    "{package}>=([0-9.]+)",$', text, re.MULTILINE)
    assert found is not None
    return tuple(map(int, found[1].split(".")))


@pytest.mark.parametrize(
    ("package", "repaired", "hole"),
    [
        ("torch", (2, 10), "CVE-2026-24747: memory overwritten by a weights-only file"),
        ("pillow", (12, 2), "CVE-2026-40192: a FITS file that fills the memory"),
    ],
)
def test_the_oldest_versions_taken_are_above_the_known_holes(
    package: str, repaired: tuple[int, ...], hole: str
) -> None:
    assert floor_of(package) >= repaired, hole
