"""Tests that two processes never train in the same folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.messages import fails

from finetune.checkpoints.run_dir import LAST, MARKER
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter

pytest.importorskip("fcntl", reason="folders are claimed by record locks")

Make = Callable[..., Config]

HOLD = """\
import sys
from pathlib import Path
from finetune.checkpoints.run_lock import RunLock
from finetune.core.errors import OutputError
try:
    with RunLock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except OutputError as error:
    print(error, flush=True)
"""


def other_process(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said_by_another(folder: Path) -> str:
    return other_process(folder).communicate()[0]


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    with other_process(folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_a_folder_in_which_another_process_trains_is_left_alone(
    make_config: Make, how: dict[str, bool]
) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    folder = Path(config.output_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with held_by_another(folder), fails("output.locked", key="output_dir"):
        train(config, **how)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


class Asking(SilentReporter):
    """Lets another process try to claim the folder as soon as a checkpoint is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[str] = []

    def say(self, text: str, *, good: bool = False) -> None:
        if (self.folder / LAST).exists() and not self.answers:
            self.answers.append(said_by_another(self.folder))


def test_a_folder_is_claimed_while_it_is_trained_in_and_free_afterwards(make_config: Make) -> None:
    config = make_config()
    folder = Path(config.output_dir)
    asking = Asking(folder)
    train(config, reporter=asking)
    assert ["another process is training" in answer for answer in asking.answers] == [True]
    assert said_by_another(folder) == "held\n"


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    with other_process(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert said_by_another(tmp_path) == "held\n"
