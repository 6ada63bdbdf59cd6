"""Tests that runs killed at any moment resume bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from helpers.counting import Count, times
from helpers.feature_rows import append, fill, missing_from, opened, wrong_rows
from helpers.messages import check_message
from helpers.run_files import assert_same_run
from helpers.run_server import KINDS, Runs

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Training, read_checkpoint, save_checkpoint
from finetune.checkpoints.run_dir import LAST, PREVIOUS

MOST_KILLS_A_RUN = 4
ROWS, BLOCK = list(range(2_000)), 4


def killed_until_done(runs: Runs, number: int, most: int) -> int:
    """A run that is killed at random moments, at most so often, and goes on each time; returns
    how often it was killed."""
    rng = random.Random(number)
    kind, run, kills = rng.choice(list(KINDS)), f"killed{number}", 0
    often = ["--set", f"train.checkpoint_minutes={rng.choice([1e-9, 10])}"]
    more: list[str] = []
    while True:
        workers = rng.choice([0, 1, 2])
        program = runs.server.start(*runs.arguments(kind, run, *often, *more, workers=workers))
        if kills < most:
            time.sleep(rng.uniform(0.0, runs.seconds[kind]))
            program.send(signal.SIGKILL)
        code = program.wait()
        if code != -signal.SIGKILL:
            assert code == 0, program.said
            assert_same_run(runs.folder / kind, runs.folder / run)
            return kills
        kills += 1
        there = any((runs.folder / run / name).exists() for name in (LAST, PREVIOUS))
        # What the message says to a run that was killed before its first checkpoint.
        more = ["--resume"] if there else ["--overwrite"]


def test_a_killed_run_goes_on_bit_for_bit(runs: Runs, count: Count) -> None:
    total, kills, number = times("KILLS", 20), 0, 0
    lost: list[str] = []
    while kills < total:
        try:
            kills += killed_until_done(runs, number, min(MOST_KILLS_A_RUN, total - kills))
        except AssertionError as error:
            lost.append(f"run {number}: {error}")
            kills += 1
        number += 1
        assert number <= total + 10, "hardly any kill came in time"
    count("kills", tried=kills, held=kills - len(lost))
    assert not lost


def test_a_run_that_was_killed_before_its_first_checkpoint_is_told_what_to_do(
    runs: Runs,
) -> None:
    folder = runs.folder / "early"
    folder.mkdir()
    (folder / ".finetune-run").touch()
    code, err = runs.server.run(*runs.arguments("part", "early", "--resume"))
    assert code == 5
    check_message(err.replace(str(runs.folder), "RUNS"))
    code, err = runs.server.run("train", "--resume", str(folder))
    assert code == 6
    check_message(err.replace(str(runs.folder), "RUNS"))


def test_a_folder_that_was_not_marked_yet_when_its_run_was_killed_is_taken(
    tmp_path: Path,
) -> None:
    """The mark is written as all else is, through a file of another name."""
    (tmp_path / ".tmp-abcd1234").touch()
    run_dir.prepare(tmp_path, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == [run_dir.MARKER]


def save_for_ever() -> None:
    """What a killed program does: saves generation after generation, and says which are done."""
    folder, generation = Path(sys.argv[1]), int(sys.argv[2])
    model = read_checkpoint(folder / "model.pt")
    assert model.training is not None
    while True:
        generation += 1
        tensors = {n: torch.full_like(t, generation) for n, t in model.training.tensors.items()}
        save_checkpoint(
            folder / LAST,
            model.model,
            model.metadata.model_copy(update={"epoch": generation}),
            training=Training(model.training.record, tensors),
            keep=folder / PREVIOUS,
        )
        print(generation, flush=True)


def generation_of(path: Path) -> int:
    """Return the generation of a checkpoint; all of its tensors must be of the same generation."""
    checkpoint = read_checkpoint(path)
    assert checkpoint.training is not None
    epoch = checkpoint.metadata.epoch
    assert all(bool((tensor == epoch).all()) for tensor in checkpoint.training.tensors.values())
    return epoch


def test_a_save_that_is_killed_leaves_the_one_before_it(
    runs: Runs, tmp_path: Path, count: Count
) -> None:
    (tmp_path / "model.pt").write_bytes((runs.folder / "part" / LAST).read_bytes())
    rng = random.Random(0)
    total, generation, held = times("KILLS_IN_SAVE", 20), 0, 0
    for _ in range(total):
        given = (str(tmp_path), str(generation))
        program = runs.server.start(*given, call="faults.test_kills:save_for_ever")
        while program.out.read_text().count("\n") < 2:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        program.send(signal.SIGKILL)
        program.wait()
        said = int(program.out.read_text().split()[-1])
        generation = generation_of(tmp_path / LAST)
        before = generation_of(tmp_path / PREVIOUS)
        held += generation in (said, said + 1) and before in (generation - 1, generation - 2)
    count("kills-in-save", tried=total, held=held)
    assert held == total


def fill_in_blocks(folder: Path, told: int) -> None:
    """What a killed process does: adds block after block, and says how many are complete."""
    store = opened(folder)
    for start in range(0, len(ROWS), BLOCK):
        append(store, ROWS[start : start + BLOCK])
        os.write(told, b"x")
    os._exit(0)


def test_a_filling_that_is_killed_loses_no_block_that_was_complete(
    tmp_path: Path, count: Count
) -> None:
    rng = random.Random(0)
    total, held, incomplete = times("KILLS_IN_FILL", 20), 0, 0
    fork = multiprocessing.get_context("fork")
    for number in range(total):
        folder = tmp_path / str(number)
        read, write = os.pipe()
        process = fork.Process(target=fill_in_blocks, args=(folder, write))
        process.start()
        os.close(write)
        os.read(read, 1)  # from here on it is filling
        time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        process.join()
        blocks = 1
        while content := os.read(read, 4096):
            blocks += len(content)
        os.close(read)
        store = opened(folder)
        missing = missing_from(store, ROWS)
        whole = len(ROWS) - len(missing)
        fill(store, ROWS)
        again = opened(folder)
        complete = blocks * BLOCK <= whole <= (blocks + 1) * BLOCK
        repaired = not missing_from(again, ROWS) and not wrong_rows(again, ROWS)
        held += complete and repaired and not again.damaged
        incomplete += bool(missing)
    count("kills-in-fill", tried=total, held=held)
    assert held == total
    assert incomplete  # else no kill came in time
