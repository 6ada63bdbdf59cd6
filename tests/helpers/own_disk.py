"""Small tmpfs that is visible only to one child process; needs no root privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2"'


def run_on_own_disk(
    program: Path, folder: Path, *arguments: str, size: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program, told the folder, in a process for which that is an empty disk."""
    folder.mkdir(exist_ok=True)
    _skip_unless_possible(folder)
    return subprocess.run(
        [
            *("unshare", "-rm", "sh", "-c", f'{_MOUNT} && shift 2 && exec "$@"', "sh"),
            *(size, str(folder), sys.executable, str(program), str(folder), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _skip_unless_possible(folder: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, which gives a process a disk of its own")
    command = ["unshare", "-rm", "sh", "-c", _MOUNT, "sh", "64k", str(folder)]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system gives a process no disk of its own: {tried.stderr.strip()}")
