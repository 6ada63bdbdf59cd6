"""Tests of the terminal: width, colour, verbosity and progress."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.paths import REPOSITORY
from rich.cells import cell_len

from finetune.cli import terminal
from finetune.cli.terminal import TerminalReporter
from finetune.core.reporter import LoggingReporter, SilentReporter

_STYLE = re.compile(r"\x1b\[[\d;]*m")
LONG = "runs/" + "a_folder/" * 13 + "pets.yaml"


@pytest.fixture(autouse=True)
def normal_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "level", terminal.NORMAL)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def in_a_terminal(columns: int, *arguments: str, **variables: str) -> str:
    """What a command writes to a terminal of this width."""
    pid, terminal_end = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        # Not execv, which would pass on what the readline library has set.
        environment = {**os.environ, "TERM": "xterm-256color", **variables}
        os.execve(sys.executable, [sys.executable, "-m", "finetune", *arguments], environment)
    fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    while True:
        try:
            some = os.read(terminal_end, 65536)
        except OSError:  # the other end is closed
            break
        if not some:
            break
        written += some
    os.waitpid(pid, 0)
    os.close(terminal_end)
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_an_error_is_wrapped_and_coloured_on_a_terminal(columns: int) -> None:
    shown = in_a_terminal(columns, "train", LONG)
    assert "\x1b[1;31m" in shown
    lines = [line.rpartition("\r")[2] for line in _STYLE.sub("", shown).split("\n")]
    text = [re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", line) for line in lines]
    assert len(text) > 2
    assert max(map(cell_len, text)) <= columns


def test_no_color_leaves_the_text() -> None:
    shown = in_a_terminal(80, "train", "absent.yaml", NO_COLOR="1")
    assert "absent.yaml: no such" in shown
    assert "31m" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("models", "mobilenet"),
        ("cache", "list"),
        ("--help",),
        ("train", "--help"),
        ("predict", "--help"),
        ("freeze-report", "configs/quickstart.yaml", "--num-classes", "8", "--verbose"),
        ("train", LONG),
        ("eval", LONG),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_of_a_command_is_wider_than_columns(
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    columns: int,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(terminal, "is_terminal", lambda _: True)
    outcome = command_line(*arguments)
    lines = (outcome.out + outcome.err).split("\n")
    assert max(map(cell_len, lines)) <= columns
    assert not any(_STYLE.search(line) for line in lines)


def test_a_message_in_a_pipe_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = "word " * 50 + LONG
    TerminalReporter().warn(text)
    assert capsys.readouterr().err == f"warning: {text}\n"


def test_the_level_decides_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for level in (terminal.QUIET, terminal.NORMAL, terminal.VERBOSE):
        terminal.set_level(level)
        reporter = TerminalReporter()
        reporter.say("fact")
        reporter.detail("detail")
        reporter.warn("problem")
        shown.append(capsys.readouterr().err.split())
    assert shown == [
        ["warning:", "problem"],
        ["fact", "warning:", "problem"],
        ["fact", "detail", "warning:", "problem"],
    ]


def test_options_set_the_level_and_the_next_call_starts_anew(command_line: CommandLine) -> None:
    levels = []
    for options in (["--quiet"], ["-v"], []):
        assert command_line("cache", "list", *options).code == 0
        levels.append(terminal.level)
    assert levels == [terminal.QUIET, terminal.VERBOSE, terminal.NORMAL]


def test_names_cannot_send_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalReporter().say("a\x1b[31mb")
    assert capsys.readouterr().err == "a\\x1b[31mb\n"


def test_a_log_has_every_message_also_those_from_before_the_file(tmp_path: Path) -> None:
    log = LoggingReporter(SilentReporter())
    log.say("before")
    log.write_to(tmp_path / "log.txt")
    log.detail("resolved")
    log.warn("problem")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["before", "resolved", "warning: problem"]


def test_a_log_that_cannot_be_written_ends_no_work(tmp_path: Path) -> None:
    log = LoggingReporter(SilentReporter())
    log.write_to(tmp_path / "absent" / "log.txt")
    log.say("goes on")
