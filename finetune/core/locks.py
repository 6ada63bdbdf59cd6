"""Locks for process-wide state and between processes; imports no torch."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


def lock_across_forks() -> threading.Lock:
    """Return a lock that is acquired around forks, so that a child never inherits it locked by
    another thread, which would be a deadlock."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


@contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Hold an exclusive lock on an open file; waits for other processes and other open files.

    The operating system releases the lock of a process that is killed.

    Raises:
        OSError: The file system does not support locks.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                break
            except PermissionError:  # held by another process for longer than msvcrt waits
                continue
        try:
            yield
        finally:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        return
    if fcntl is None:
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
