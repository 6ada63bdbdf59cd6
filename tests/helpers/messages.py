"""Golden files of messages: tests assert kind and place of an error, and a file holds its wording.

``tests/…/snapshots/test_x.txt`` lists, by test, each message that the tests of ``test_x.py``
provoked. ``UPDATE_SNAPSHOTS=1 pytest …`` rewrites the entries of the tests that run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune import __version__
from finetune.core.errors import FinetuneError
from helpers.paths import REPOSITORY

_UPDATE = "UPDATE_SNAPSHOTS"
_HEAD = re.compile(r"^\[(.*)\]$")
TEMPORARY = "FINETUNE_TEST_TEMPORARY"
"""Environment variable with the folder of all temporary folders of tests."""
_fresh: set[str] = set()
"""Tests whose entries this process has rewritten."""


@contextmanager
def fails(
    kind: str,
    *,
    key: str | None = None,
    path: str | Path | None = None,
    source: str | None = None,
    worded: bool = True,
) -> Iterator[pytest.ExceptionInfo[FinetuneError]]:
    """Check that the block raises an error of this kind and place, worded as in the golden file.

    Args:
        kind: `FinetuneError.kind`; of the only problem, if the error lists several of one kind.
        key: Key that the error has; None: not checked, except by the golden file.
        path: Path that the error has, or the end of it.
        source: Source that the error has.
        worded: Whether the golden file has the message; false where it depends on the machine.
    """
    with pytest.raises(FinetuneError) as caught:
        yield caught
    error = caught.value
    assert error.kind == kind, f"{error.kind}: {error}"
    if key is not None:
        assert error.key == key
    if path is not None:
        assert (error.path or "").endswith(str(path))
    if source is not None:
        assert error.source == source
    if worded:
        check_error(error)


def check_error(error: FinetuneError) -> None:
    """Check that the golden file has this error: kind, key, path and message."""
    place = [f"{name}={value}" for name in ("key", "path") if (value := getattr(error, name))]
    check_message(f"{', '.join([error.kind, *place])}\n{error}")


def check_message(text: str) -> None:
    """Check that the golden file has this message under the test that runs."""
    file, test = _place()
    entries = _read(file)
    text = _neutral(text)
    if os.environ.get(_UPDATE):
        if test not in _fresh:
            entries.pop(test, None)
            _fresh.add(test)
        if text not in entries.setdefault(test, []):
            entries[test].append(text)
        _write(file, entries)
    known = entries.get(test, [])
    assert text in known, (
        f"another message than in {file.relative_to(REPOSITORY)} ({_UPDATE}=1 accepts it):\n{text}"
        f"\nknown:\n{chr(10).join(known)}"
    )


def _place() -> tuple[Path, str]:
    """The golden file and the name of the running test."""
    node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
    module, _, test = node.partition("::")
    path = REPOSITORY / module
    return path.parent / "snapshots" / f"{path.stem}.txt", test.replace("\n", "\\n")


def _neutral(text: str) -> str:
    """The text without temporary folders, the path of the repository and the version."""
    own = re.compile(re.escape(os.environ[TEMPORARY]) + r"/[^/\s:'\",;)]+")
    text = own.sub("TMP", text).replace(str(REPOSITORY), "REPOSITORY")
    text = text.replace(f"finetune ({__version__})", "finetune (VERSION)")
    return text.encode("utf-8", "backslashreplace").decode()


def _read(file: Path) -> dict[str, list[str]]:
    entries: dict[str, list[str]] = {}
    lines: list[str] = []
    if not file.exists():
        return entries
    for line in file.read_text(encoding="utf-8").split("\n"):
        if head := _HEAD.match(line):
            lines = []
            entries[head[1]] = lines
        elif line.startswith("- "):
            lines.append(line[2:])
        elif line:
            lines[-1] += f"\n{line[2:]}"
    return entries


def _write(file: Path, entries: dict[str, list[str]]) -> None:
    file.parent.mkdir(exist_ok=True)
    parts = []
    for test in sorted(entries):
        shown = ["- " + text.replace("\n", "\n  ") for text in entries[test]]
        parts.append("\n".join([f"[{test}]", *shown]))
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
