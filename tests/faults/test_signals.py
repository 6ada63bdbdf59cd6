"""Tests of SIGINT and SIGTERM at any moment of a run."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.counting import Count, times
from helpers.fork_server import Program
from helpers.run_files import assert_same_run
from helpers.run_server import KINDS, Runs

from finetune.checkpoints.checkpoint import read_checkpoint
from finetune.checkpoints.run_dir import LAST, SUMMARY

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

PLACES = {
    # What is at work when the signal comes: module, what in it, and at which call of it.
    "check": ("finetune.training.setup", "preflight_check", 1),
    "weights": ("finetune.training.prepare_stage", "hash_frozen", 1),
    "fill": ("finetune.features.store", "DiskStore.append", 1),
    "filling in workers": (
        "torch.utils.data.dataloader",
        "_MultiProcessingDataLoaderIter.__init__",
        1,
    ),
    "folder": ("finetune.checkpoints.run_dir", "prepare", 1),
    "loader": ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter.__init__", 1),
    "step": ("finetune.training.step", "Step.take", 7),
    "evaluation": ("finetune.training.fit", "evaluate", 2),
    "save": ("finetune.checkpoints.checkpoint", "write_with_checksum", 2),
    "rename": ("finetune.core.files", "_rename", 6),
    "epoch": ("finetune.checkpoints.checkpointer", "Checkpointer.keep", 1),
    "last": ("finetune.checkpoints.checkpointer", "Checkpointer.keep", 2),
    "verify": ("finetune.commands.train", "_verify_saved", 1),
    "read": ("finetune.checkpoints.safe_load", "_refuse_bombs", 1),  # as _verify_saved does
}
BEFORE_TRAINING = ("check", "weights", "fill", "filling in workers")
"""There is nothing to save yet: the same command begins again."""


def signalled() -> None:
    """What a program does: runs the command line, and sends itself signals where it is told to.

    Arguments: place, number of the signal, how often, whether to all of its process group; then
    those of the command line.
    """
    place, number, times, group, *rest = sys.argv[1:]
    module_name, path, call = PLACES[place]
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    def patched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(int(times)):
                (os.killpg if group == "group" else os.kill)(
                    os.getpgid(0) if group == "group" else os.getpid(), int(number)
                )
        return real(*arguments, **options)

    setattr(owner, name, patched)
    sys.argv[1:] = rest
    importlib.import_module("finetune.cli.app").main()


def ended(program: Program, number: signal.Signals) -> str:
    """The last line on stderr of a program that a signal ended."""
    code, err = program.wait(), program.said
    assert code == CODES[number], f"{code}\n{err}"
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert program.out.read_text() == ""
    gone = time.monotonic() + 20  # workers look for their parent every five seconds
    while program.left() and time.monotonic() < gone:
        time.sleep(0.05)
    assert program.left() == []
    return err.splitlines()[-1]


def go_on(runs: Runs, kind: str, run: str, message: str, first: list[str]) -> None:
    """Do what the message says, literally; then it is the run that nobody stopped."""
    _, found, command = message.rpartition("esume with: finetune ")
    if found:
        code, err = runs.server.run(*shlex.split(command))
        assert code == 0, err
    elif not (runs.folder / run / SUMMARY).exists():
        before = "finetune: interrupted", "finetune: terminated"  # before anything was looked at
        assert message in before or message.endswith("run the same command to start over"), message
        code, err = runs.server.run(*first)
        assert code == 0, err
    assert_same_run(runs.folder / kind, runs.folder / run)


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_the_run_and_says_how_it_goes_on(
    runs: Runs,
    place: str,
) -> None:
    number = list(CODES)[list(PLACES).index(place) % 2]
    kind = "part" if place.startswith("fill") else "everything"
    workers = 2 if place in ("loader", "filling in workers") else 0
    first = runs.arguments(kind, place, workers=workers)
    given = (place, str(int(number)), "1", "group" if workers else "process")
    program = runs.server.start(*given, *first, call="faults.test_signals:signalled")
    message = ended(program, number)
    assert message.startswith(f"finetune: {WORDS[number]} ")
    folder = runs.folder / place
    assert (folder / LAST).exists() is (place not in BEFORE_TRAINING)
    assert not list(folder.glob(".tmp-*"))
    go_on(runs, kind, place, message, first)


@pytest.mark.parametrize("place", ["step", "save", "evaluation"])
def test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole(
    runs: Runs,
    place: str,
) -> None:
    run = f"twice-{place}"
    often = ["--set", "train.checkpoint_minutes=1e-9"]
    first = runs.arguments("everything", run, *often, workers=1)
    given = (place, str(int(signal.SIGINT)), "2", "process")
    program = runs.server.start(*given, *first, call="faults.test_signals:signalled")
    assert ended(program, signal.SIGINT) == (
        "finetune: aborted; checkpoints written so far are intact"
    )
    folder = runs.folder / run
    if (folder / LAST).exists():
        read_checkpoint(folder / LAST)
        message = f"Resume with: finetune train --resume {folder}"
        go_on(runs, "everything", run, message, first)
    else:
        assert place == "save"


def test_a_signal_to_the_whole_group_reaches_no_worker(runs: Runs) -> None:
    """Ctrl-C and `timeout` send it to every process of a job."""
    first = runs.arguments("everything", "group", workers=2)
    given = ("step", str(int(signal.SIGTERM)), "1", "group")
    program = runs.server.start(*given, *first, call="faults.test_signals:signalled")
    message = ended(program, signal.SIGTERM)
    assert "terminated in epoch 2, after batch 2; saved." in message
    go_on(runs, "everything", "group", message, first)


@pytest.mark.parametrize(
    ("place", "where"),
    [("step", "in epoch 1, after batch"), ("evaluation", "in the evaluation of epoch 1;")],
)
def test_workers_that_die_of_the_same_signal_lose_nothing(
    runs: Runs, place: str, where: str
) -> None:
    """A service manager sends it to every process there is, whatever its group."""
    first = runs.arguments("everything", f"workers-{place}", workers=2)
    program = runs.server.start(*first, call=f"faults.test_signals:with_workers_killed_in_{place}")
    message = ended(program, signal.SIGTERM)
    assert f"terminated {where}" in message
    go_on(runs, "everything", f"workers-{place}", message, first)


def stop_with_workers() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    for worker in multiprocessing.active_children():
        worker.kill()  # one that has just begun would not hear anything else
        worker.join()


def with_workers_killed_in_evaluation() -> None:
    """What a program does: kills its workers and tells itself to stop, as soon as those of the
    first evaluation are there."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers

    real: Callable[..., None] = Workers.__init__
    calls = 0

    def begin(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        real(*arguments, **options)
        if calls == 2:
            stop_with_workers()

    Workers.__init__ = begin
    importlib.import_module("finetune.cli.app").main()


def with_workers_killed_in_step() -> None:
    """What a program does: kills its workers and tells itself to stop, in its third step."""
    from finetune.training.step import Step

    real: Callable[..., None] = Step.take
    calls = 0

    def take(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            stop_with_workers()
        real(*arguments, **options)

    Step.take = take  # type: ignore[method-assign]
    importlib.import_module("finetune.cli.app").main()


def test_signals_at_random_moments(runs: Runs, count: Count) -> None:
    total, rng = times("SIGNALS", 4), random.Random(0)
    in_time, lost = 0, list[str]()
    for number in range(total):
        kind, workers = rng.choice(list(KINDS)), rng.choice([0, 2])
        run, asked = f"random{number}", rng.choice(list(CODES))
        first = runs.arguments(kind, run, workers=workers)
        program = runs.server.start(*first)
        time.sleep(rng.uniform(0.0, runs.seconds[kind]))
        listening = ends_by_default(program)
        start = time.monotonic()
        program.send(asked)
        code = program.wait()
        in_time += time.monotonic() - start <= 10
        if code == 0 or (listening and code in (-asked, 1)):
            continue  # it was faster, or had not begun to listen
        try:
            go_on(runs, kind, run, ended(program, asked), first)
        except AssertionError as error:
            lost.append(f"signal {number}: {error}")
    count("signals", tried=total, held=total - len(lost))
    count("signals-in-time", tried=total, held=in_time)
    assert not lost


def ends_by_default(program: Program) -> bool:
    """Whether a program has not come so far as to handle signals itself."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return not int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1)
