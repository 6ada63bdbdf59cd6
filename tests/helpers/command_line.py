"""Calls of the command line within the test's process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from finetune.cli import app, support


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line left behind."""

    code: int
    out: str
    err: str


class CommandLine:
    """Calls the command line; standard streams are captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(support, "debug_is_on", False)
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        code = app._run()
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)
