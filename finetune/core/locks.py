"""Locks for process-wide state; imports no torch."""

from __future__ import annotations

import os
import threading


def lock_across_forks() -> threading.Lock:
    """Return a lock that is acquired around forks, so that a child never inherits it locked by
    another thread, which would be a deadlock."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
