"""Counts of how often a promise was tested and held, for docs/reliability.md.

    COUNT = times("CONFIGS", 60)  # overridden by the environment variable FINETUNE_COUNT_CONFIGS

    def test_no_config_ends_in_a_traceback(count: Count) -> None:
        ...
        count("configs", tried=COUNT, held=COUNT - len(lost))
        assert not lost

`benchmarks/reliability.py` sets the variables, reads the counts and writes the table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

FILE = "FINETUNE_COUNTS"
"""Environment variable: a file that is given a line of JSON for each count; without it, nothing is
kept."""


class Count(Protocol):
    """What the fixture `count` gives; said before the assertion, so that a loss is counted too."""

    def __call__(self, promise: str, *, tried: int, held: int) -> None: ...


def times(name: str, in_ci: int) -> int:
    """How often a test tries: so often in every run, or what ``FINETUNE_COUNT_NAME`` says."""
    return int(os.environ.get(f"FINETUNE_COUNT_{name}", in_ci))


def keep(promise: str, *, tried: int, held: int, test: str) -> None:
    """Add a line to the file that the environment names; several of one promise are summed."""
    assert 0 <= held <= tried
    path = os.environ.get(FILE)
    if path:
        line = json.dumps({"promise": promise, "tried": tried, "held": held, "test": test})
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
