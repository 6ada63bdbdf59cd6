"""Time and peak anonymous memory of a process tree, and a description of the machine.

Anonymous memory is memory that a program allocates. The resident set size would also include file
pages that the system can reclaim, and count memory shared by loader workers once per worker; the
proportional share (``Pss_Anon``) sums to the memory in use.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SAMPLE_EVERY_S = 0.2
_PROC = Path("/proc")
_MIB_IN_KIB = 1024


class ProcessError(Exception):
    """A measured program failed; the message contains the end of its stderr."""


@dataclass(frozen=True)
class Took:
    """Cost of a program.

    Attributes:
        cpu_s: User and system time of all its processes, which a busy machine affects less than
            ``wall_s``.
        peak_anonymous_mib: Peak anonymous memory of the process tree; None if it is unavailable.
        load_before: Load average of the machine at the start.
    """

    wall_s: float
    cpu_s: float
    peak_anonymous_mib: float | None
    load_before: float


@dataclass(frozen=True)
class Process:
    """A program that has exited with status 0."""

    stdout: str
    took: Took


def run_process(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Run a program and measure its cost.

    Raises:
        ProcessError: the exit status is not 0.
    """
    # This variable would recompile the sources in each run, unlike an installed program.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    load = os.getloadavg()[0]
    cpu_before = _children_cpu_s()
    start = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=inherited | dict(environment or {}),
    )
    sampler = _MemorySampler(child.pid)
    try:
        stdout, stderr = child.communicate()
    finally:
        wall_s = time.perf_counter() - start
        sampler.stop()
        if child.poll() is None:
            child.terminate()
            child.wait()
    if child.returncode:
        said = "\n".join(stderr.strip().splitlines()[-15:])
        raise ProcessError(f"{command}\nexit status {child.returncode}\n{said}")
    cpu_s = _children_cpu_s() - cpu_before
    return Process(stdout, Took(wall_s, cpu_s, sampler.peak_mib, load))


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _MemorySampler:
    """Thread that samples the memory of a process tree every `SAMPLE_EVERY_S` seconds."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_kib = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while True:
            total = sum(_anonymous_kib(pid) for pid in _tree(self._pid))
            self._peak_kib = max(self._peak_kib, total)
            if self._stopped.wait(SAMPLE_EVERY_S):
                return

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float | None:
        return self._peak_kib / _MIB_IN_KIB if self._peak_kib else None


def _tree(root: int) -> list[int]:
    """Return the ids of a process and all its descendants, including those of its threads."""
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        for children in _PROC.glob(f"{pid}/task/*/children"):
            try:
                queue += map(int, children.read_text().split())
            except OSError:  # the process has ended since the listing
                continue
    return found


def _anonymous_kib(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return int(values.get("Pss_Anon", values.get("Anonymous", 0)))


def import_seconds(python: str, folder: Path) -> float:
    """Return the time of a process that only imports torch and torchvision."""
    return run_process([python, "-c", "import torch, torchvision"], folder=folder).took.wall_s


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of an interpreter and of its installed packages."""
    program = """
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
    done = subprocess.run(
        [python, "-c", program, *packages], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def origin(packages: Sequence[str]) -> dict[str, Any]:
    """Return date, commit, machine and versions of a measurement by this interpreter."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(Path(__file__).resolve().parent.parent),
        "machine": describe_machine(),
        "versions": versions(sys.executable, packages),
    }


def commit(repository: Path) -> str:
    """Return the commit of the checkout, and whether it has changes; empty without git."""
    git = ["git", "-C", str(repository)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "finetune", "configs"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head} with changes" if changed else head


def describe_machine() -> dict[str, object]:
    """Describe processor, memory and system."""
    information = _cpu_information()
    flags = information.get("flags", "").split()
    return {
        "cpu": information.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_information() -> dict[str, str]:
    """Return /proc/cpuinfo of the first processor; empty if the file does not exist."""
    try:
        first = (_PROC / "cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
