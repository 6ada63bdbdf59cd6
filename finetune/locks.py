"""Locks around state of the whole process; imports no torch."""

from __future__ import annotations

import os
import threading


def lock_across_forks() -> threading.Lock:
    """A lock that no other thread holds at a fork: the child would wait for it without end."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
