"""Contents of a run folder, for tests that compare two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoints.checkpoint import read_checkpoint


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: the network's, and those of the training."""
    checkpoint = read_checkpoint(path)
    training = {} if checkpoint.training is None else checkpoint.training.tensors
    return {**checkpoint.model, **training}


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["elapsed_s"], record["eval_s"]
    return records


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, what the optimizer remembers, and every figure; only times may differ."""
    for name in ("best.pt", "last.pt"):
        mine, theirs = tensors_of(one / name), tensors_of(other / name)
        assert mine.keys() == theirs.keys()
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
        metrics = [read_checkpoint(folder / name).metadata.metrics for folder in (one, other)]
        assert metrics[0] == metrics[1]
    records = records_of(one)
    assert records == records_of(other)
    losses = {record["loss"] for record in records} | {record["val"]["loss"] for record in records}
    assert len(losses) > len(records), "a network that learns nothing agrees with any other"
