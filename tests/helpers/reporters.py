"""Reporter that remembers what it was told."""

from __future__ import annotations

from finetune.core.reporter import SilentReporter


class RecordingReporter(SilentReporter):
    """Reporter that remembers messages and warnings, and shows nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str, *, good: bool = False) -> None:
        self.said.append(text)

    def detail(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)
