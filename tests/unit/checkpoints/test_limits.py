"""Tests of the limits in a checkpoint: what is read is what was written, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_checkpoint import small_checkpoint
from torch import Tensor

from finetune.checkpoints.checkpoint import (
    read_checkpoint,
    replace_limits,
    save_checkpoint,
)
from finetune.checkpoints.limits import Limits, LimitsRecord
from finetune.config.schema import Config
from finetune.core.errors import CheckpointError


def some_limits() -> Limits:
    record = LimitsRecord(rate=0.05, training_images=7, images=4)
    return Limits(
        record,
        centre=torch.rand(3),
        scale=torch.tensor(2.0),
        directions=torch.rand(2, 3),
        weights=torch.rand(5, 3),
        offsets=torch.rand(5),
        shares=torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )


def test_limits_are_read_as_they_were_written(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    state, metadata = small_checkpoint(make_config())
    limits = some_limits()
    save_checkpoint(tmp_path / "x.pt", state, metadata, limits=limits)
    found = read_checkpoint(tmp_path / "x.pt").limits
    assert found is not None
    assert found.record == limits.record
    assert all(torch.equal(found.tensors[name], limits.tensors[name]) for name in limits.tensors)


def test_a_checkpoint_without_limits_is_read_and_can_get_some(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    state, metadata = small_checkpoint(make_config())
    save_checkpoint(tmp_path / "x.pt", state, metadata)
    assert read_checkpoint(tmp_path / "x.pt").limits is None
    replace_limits(tmp_path / "x.pt", metadata, some_limits())
    assert read_checkpoint(tmp_path / "x.pt").limits is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shares", lambda tensor: tensor.flip(0)),
        ("shares", lambda tensor: tensor[:3]),
        ("centre", lambda tensor: tensor.double()),
        ("centre", lambda tensor: tensor[:0]),
        ("weights", lambda tensor: tensor[:, :2]),
        ("weights", lambda tensor: tensor * float("nan")),
        ("offsets", lambda tensor: tensor[:4]),
        ("scale", lambda tensor: tensor[None]),
        ("scale", lambda tensor: tensor * float("inf")),
        ("directions", lambda tensor: tensor[:, :1]),
    ],
)
def test_hostile_limits_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = some_limits().tensors
    with pytest.raises(ValueError, match="limits"):
        Limits.of(some_limits().record, tensors | {name: change(tensors[name])})


@pytest.mark.parametrize("record", [{"rate": 2.0}, {"images": 0}, {"more": 1}])
def test_a_hostile_record_is_refused(
    make_config: Callable[..., Config], tmp_path: Path, record: dict[str, Any]
) -> None:
    state, metadata = small_checkpoint(make_config())
    hostile = LimitsRecord.model_construct(rate=0.05, training_images=7, images=4)
    hostile = hostile.model_copy(update=record)
    if "more" in record:
        hostile = type("More", (LimitsRecord,), {"__annotations__": {"more": int}})(
            rate=0.05, training_images=7, images=4, more=1
        )
    save_checkpoint(
        tmp_path / "x.pt", state, metadata, limits=replace(some_limits(), record=hostile)
    )
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "x.pt")


def test_limits_of_missing_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="limits"):
        Limits.of(some_limits().record, {})
