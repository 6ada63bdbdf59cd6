"""Run lock: at most one process writes to a run directory."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import IO

from finetune.checkpoints.run_dir import MARKER
from finetune.core.errors import OutputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_HELD = frozenset({errno.EACCES, errno.EAGAIN})
_LOCKED_BYTE = 2**20
"""Offset of the byte that is locked on Windows, beyond the end of the marker's text: locks there
are mandatory, and other processes read the marker."""


class RunLock:
    """Exclusive lock on a run directory, until the end of a ``with`` block or of the process.

    A record lock (``lockf``) on the marker file; on Windows a lock of ``msvcrt``. The operating
    system releases it however the process ends, and forked worker processes do not inherit it,
    unlike the ``flock`` used by ``filelock``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Acquire the lock, if the directory contains a run and is not locked by this object yet.

        Raises:
            OutputError: Another process holds the lock.
        """
        marker = self._folder / MARKER
        if self._file is not None:
            return
        try:
            file = marker.open("r+b")
        except OSError:  # no run yet, or not writable, which writing reports
            return
        try:
            _lock(file)
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                raise OutputError(
                    "another process is training in this folder",
                    kind="output.locked",
                    key="output_dir",
                    path=self._folder,
                    to_do="wait until it ends, or choose another folder with "
                    "--set output_dir=FOLDER",
                ) from None
            return  # a file system without locks
        self._file = file

    def __enter__(self) -> RunLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(file: IO[bytes]) -> None:
    """Lock the file without waiting.

    Raises:
        OSError: Another process holds the lock, or the file system does not support locks.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    elif fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
