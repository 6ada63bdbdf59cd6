"""Epochs are written when that is cheap, and none is lost when a run ends, however it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import saving
from finetune.checkpoint import Metadata
from finetune.errors import OutputError
from finetune.saving import Saver


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saving.time, "perf_counter", clock.perf_counter)
    return clock


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[tuple[str, int]]:
    """What was written, each write a second long."""
    found: list[tuple[str, int]] = []

    def write(path: Path, state: dict[str, torch.Tensor], metadata: Metadata) -> None:
        clock.now += 1.0
        found.append((path.name, int(state["weight"][0, 0])))

    monkeypatch.setattr(saving, "save_checkpoint", write)
    return found


def model() -> nn.Module:
    return nn.Linear(1, 1)


def epochs(saver: Saver, count: int, *, each_s: float, clock: Clock) -> None:
    for epoch in range(1, count + 1):
        clock.now += each_s
        nn.init.constant_(saver.model.weight, epoch)  # type: ignore[arg-type]
        saver.keep(None, is_best=epoch == 2)  # type: ignore[arg-type]


def test_long_epochs_are_written_at_once(
    tmp_path: Path, written: list[tuple[str, int]], clock: Clock
) -> None:
    with Saver(tmp_path, model(), ()) as saver:
        epochs(saver, 3, each_s=100, clock=clock)
        assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 2), ("last.pt", 3)]


def test_short_epochs_are_written_at_the_first_and_at_the_end(
    tmp_path: Path, written: list[tuple[str, int]], clock: Clock
) -> None:
    with Saver(tmp_path, model(), ()) as saver:
        epochs(saver, 5, each_s=0.1, clock=clock)
        assert written == [("last.pt", 1)]
    assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 5)]


def test_after_a_minute_an_epoch_is_written_whatever_it_costs(
    tmp_path: Path, written: list[tuple[str, int]], clock: Clock
) -> None:
    with Saver(tmp_path, model(), ()) as saver:
        saver._spent = 1e6
        epochs(saver, 2, each_s=40, clock=clock)
        assert written == [("best.pt", 2), ("last.pt", 2)]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_writes_what_it_kept(
    tmp_path: Path, written: list[tuple[str, int]], clock: Clock, reason: type[BaseException]
) -> None:
    saver = Saver(tmp_path, model(), ())
    epochs(saver, 3, each_s=0.1, clock=clock)
    with pytest.raises(reason), saver:
        raise reason
    assert written[1:] == [("best.pt", 2), ("last.pt", 3)]


def test_a_write_that_failed_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(path: Path, *_: object) -> None:
        tried.append(path)
        raise OutputError("full")

    monkeypatch.setattr(saving, "save_checkpoint", refuse)
    with pytest.raises(OutputError, match="full"), Saver(tmp_path, model(), ()) as saver:
        saver.keep(None, is_best=False)  # type: ignore[arg-type]
    assert len(tried) == 1


def test_later_training_does_not_reach_what_was_kept(
    tmp_path: Path, written: list[tuple[str, int]], clock: Clock
) -> None:
    with Saver(tmp_path, model(), ()) as saver:
        epochs(saver, 2, each_s=0.1, clock=clock)
        nn.init.constant_(saver.model.weight, 9)  # type: ignore[arg-type]
    assert ("last.pt", 9) not in written
