"""What only a GPU can show; FINETUNE_GPU_TEST_DEVICE=cpu tries the tests themselves without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import REPOSITORY
from helpers.ranks import gap
from torch import Tensor

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.train import train
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import Interrupted
from finetune.training import fit
from finetune.training.step import Step

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("FINETUNE_GPU_TEST_DEVICE", "cuda")
WITHOUT_NORMS = {
    "name": "squeezenet1_1",
    "weights": "none",
    "preprocessing": {"resize": 36, "crop": 32},
}
BLOCK = {"patterns": ["*", "!conv5.*"]}


@pytest.fixture
def make(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Configs of runs on the device, each in a folder of its own."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")

    def make(name: str, **sections: Any) -> Config:
        runtime = {"device": DEVICE, **sections.pop("runtime", {})}
        return make_config(output_dir=str(tmp_path / name), runtime=runtime, **sections)

    return make


def weights(config: Config) -> dict[str, Tensor]:
    """The weights of a run's last epoch."""
    return load_checkpoint(Path(config.output_dir) / "last.pt")[0]


@pytest.mark.parametrize("patterns", [["*"], BLOCK["patterns"], []])
def test_the_same_run_gives_the_same_bits(make: Callable[..., Config], patterns: list[str]) -> None:
    runs = [make(name, freeze={"patterns": patterns}) for name in ("one", "two")]
    for config in runs:
        train(config)
    assert gap(*map(weights, runs)) == 0


def test_an_interrupted_run_resumes_to_the_same_bits(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (make(name, freeze=BLOCK) for name in ("whole", "stopped"))
    train(whole)
    asked = iter([False, False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(fit.signals, "asked", lambda: next(asked, True))
        with pytest.raises(Interrupted):
            train(stopped)
    train(stopped, resume=True)
    assert gap(weights(whole), weights(stopped)) == 0


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_cached_features_train_what_fresh_ones_do(make: Callable[..., Config], cache: str) -> None:
    runs = [
        make(name, freeze=BLOCK, features={"cache": name}, augment={"policy": "flip"})
        for name in ("off", cache)
    ]
    for config in runs:
        train(config)
    # The batches of cached rows are padded to one size, so that kernels may add up otherwise.
    assert gap(*map(weights, runs)) < 1e-2


def test_out_of_memory_halves_the_batch(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = Step._loss, []

    def failing(step: Step, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
        return loss(step, *arguments)

    monkeypatch.setattr(Step, "_loss", failing)
    config = make("short", model=WITHOUT_NORMS, freeze={"patterns": []})
    summary = train(config)
    assert summary.last is not None
    assert len(calls) > 2 * 3 + 1  # more micro-batches than batches


def test_two_processes_on_one_device_train_what_one_does(make: Callable[..., Config]) -> None:
    plain = {
        "precision": "float32",
        "live_precision": "float32",
        "memory_format": "contiguous",
        "live_memory_format": "contiguous",
        "compile": "off",
    }
    settings: dict[str, Any] = {
        "model": WITHOUT_NORMS,
        "freeze": {"patterns": []},
        "augment": {"policy": "flip"},
    }
    one, two = (make(name, runtime=dict(plain), **settings) for name in ("one", "two"))
    train(one)
    path = Path(two.output_dir).with_suffix(".yaml")
    path.write_text(to_yaml(two))
    assert load_config(path) == two
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "train", "--config", path, "--nproc", "2", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_train"] == 18
    assert gap(weights(one), weights(two)) < 1e-4
