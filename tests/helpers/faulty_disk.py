"""File object that fails at its 1st, 2nd, 3rd … operation, as in SQLite's tests."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

FULL, BROKEN = errno.ENOSPC, errno.EIO


@dataclass
class Disk:
    """Counts the operations of a save, and fails from one of them on, or at that one alone.

    Attributes:
        at: Which one fails, from 1.
        once: The next ones work again.
    """

    at: int
    error: int
    once: bool
    operations: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return len(self.operations) >= self.at

    def operation(self, name: str) -> None:
        self.operations.append(name)
        number = len(self.operations)
        if number == self.at or (number > self.at and not self.once):
            raise OSError(self.error, os.strerror(self.error))


class _File:
    """An open file on such a disk."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file = file
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> object:
        return self._file.__exit__(*error)

    def write(self, data: Any) -> int:
        self._disk.operation("write")
        return int(self._file.write(data))

    def flush(self) -> None:
        self._disk.operation("flush")
        self._file.flush()


@contextmanager
def faulty(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> Iterator[Disk]:
    """Every file that is made, written, synced or renamed goes through the disk."""
    real_file = tempfile.NamedTemporaryFile

    def temporary(*args: Any, **kwargs: Any) -> Any:
        disk.operation("create")
        made = real_file(*args, **kwargs)
        made.file = _File(made.file, disk)
        return made

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            disk.operation(name)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "NamedTemporaryFile", temporary)
        for name in ("fsync", "replace", "rename", "link", "chmod"):
            patch.setattr(os, name, counted(name))
        yield disk
