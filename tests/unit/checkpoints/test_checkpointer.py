"""Tests of when checkpoints are written, and that none is lost when a run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoints import checkpointer
from finetune.checkpoints.checkpoint import Checkpoint, Training
from finetune.checkpoints.checkpointer import Checkpointer
from finetune.core.errors import OutputError

Written = list[tuple[str, int]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(checkpointer.time, "perf_counter", clock.perf_counter)
    return clock


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Written:
    """What was written, each write a second long."""
    found: Written = []

    def write(path: Path, state: dict[str, torch.Tensor], *_: object, **others: Any) -> None:
        clock.now += 1.0
        found.append((path.name, int(state["weight"])))
        if others.get("training"):
            assert int(others["training"].tensors["momentum"]) == int(state["weight"])

    monkeypatch.setattr(checkpointer, "save_checkpoint", write)
    return found


class Run:
    """A network of one number, which is that of the epoch."""

    def __init__(self, saver: Checkpointer, clock: Clock) -> None:
        self.saver, self.clock = saver, clock
        self.weight, self.momentum = torch.zeros(()), torch.zeros(())

    def checkpoint(self) -> Checkpoint:
        training: Any = Training(None, {"momentum": self.momentum})  # type: ignore[arg-type]
        return Checkpoint({"weight": self.weight}, None, training)  # type: ignore[arg-type]

    def epochs(self, count: int, *, each_s: float) -> None:
        for epoch in range(1, count + 1):
            self.clock.now += each_s
            self.weight.fill_(epoch)
            self.momentum.fill_(epoch)
            self.saver.keep(self.checkpoint(), is_best=epoch == 2)


def saver_in(folder: Path, *, minutes: float = 10.0) -> Checkpointer:
    return Checkpointer(folder, (), minutes=minutes)


def test_long_epochs_are_written_at_once(tmp_path: Path, written: Written, clock: Clock) -> None:
    with saver_in(tmp_path) as saver:
        Run(saver, clock).epochs(3, each_s=100)
        assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 2), ("last.pt", 3)]


def test_short_epochs_are_written_at_the_first_and_at_the_end(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path) as saver:
        Run(saver, clock).epochs(5, each_s=0.1)
        assert written == [("last.pt", 1)]
    assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 5)]


def test_a_write_may_take_a_twentieth_of_the_elapsed_time(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path) as saver:
        Run(saver, clock).epochs(20, each_s=5)
        assert [epoch for name, epoch in written if name == "last.pt"] == [1, 4, 12, 16, 19]


def test_after_so_many_minutes_an_epoch_is_written_whatever_it_costs(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path, minutes=1) as saver:
        saver._spent = 1e6
        Run(saver, clock).epochs(2, each_s=40)
        assert written == [("best.pt", 2), ("last.pt", 2)]


def test_the_middle_of_an_epoch_is_due_after_so_many_minutes(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path, minutes=1) as saver:
        run = Run(saver, clock)
        clock.now += 60
        assert not saver.is_due
        clock.now += 1
        assert saver.is_due
        saver.keep_now(run.checkpoint())
        assert written == [("last.pt", 0)]
        assert not saver.is_due
    assert written == [("last.pt", 0)]


def test_the_middle_of_an_epoch_comes_with_the_best_epoch_before_it(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path) as saver:
        run = Run(saver, clock)
        run.epochs(3, each_s=0.1)
        run.weight.fill_(4)
        run.momentum.fill_(4)
        saver.keep_now(run.checkpoint())
    assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 4)]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_writes_what_it_kept(
    tmp_path: Path, written: Written, clock: Clock, reason: type[BaseException]
) -> None:
    saver = saver_in(tmp_path)
    Run(saver, clock).epochs(3, each_s=0.1)
    with pytest.raises(reason), saver:
        raise reason
    assert written[1:] == [("best.pt", 2), ("last.pt", 3)]


def test_a_write_that_failed_is_not_tried_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(path: Path, *_: object, **__: object) -> None:
        tried.append(path)
        raise OutputError("full", kind="output.unwritable")

    monkeypatch.setattr(checkpointer, "save_checkpoint", refuse)
    with pytest.raises(OutputError, match="full"), saver_in(tmp_path) as saver:
        Run(saver, clock).epochs(1, each_s=1)
    assert len(tried) == 1


def test_later_training_does_not_reach_what_was_kept(
    tmp_path: Path, written: Written, clock: Clock
) -> None:
    with saver_in(tmp_path) as saver:
        run = Run(saver, clock)
        run.epochs(2, each_s=0.1)
        run.weight.fill_(9)
        run.momentum.fill_(9)
    assert written == [("last.pt", 1), ("best.pt", 2), ("last.pt", 2)]


def test_what_no_training_changes_is_not_copied(tmp_path: Path, clock: Clock) -> None:
    saver = Checkpointer(tmp_path, ("frozen",), minutes=10)
    saver._spent = 1e6
    frozen, live = torch.zeros(1), torch.zeros(1)
    model = {"frozen": frozen, "live": live}
    saver.keep(Checkpoint(model, None), is_best=True)  # type: ignore[arg-type]
    assert saver._best is not None
    assert saver._best.model["frozen"] is frozen
    assert saver._best.model["live"] is not live
