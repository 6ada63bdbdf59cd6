"""CPU cores that this process may use; imports no torch."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


class _Sharing:
    processes = 1


def share_among(processes: int) -> None:
    """Divide this machine's cores and memory among several processes of one run."""
    _Sharing.processes = processes


def processes_here() -> int:
    """Return the number of processes of this run on this machine."""
    return _Sharing.processes


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, within container and job limits.

    Several processes of one run on this machine divide them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _share_of_container()) // _Sharing.processes)


def _share_of_container() -> int:
    """Return the CPU limit of this process's Linux control group, rounded up."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return sys.maxsize
