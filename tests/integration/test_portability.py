"""Test that the quickstart runs without modules that only POSIX systems have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPOSITORY

WITHOUT_POSIX = """\
import builtins
import sys

real_import = builtins.__import__
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def import_without_posix(name, globals=None, *args, **kwargs):
    importer = (globals or {}).get("__name__", "")
    if name in POSIX and importer.split(".")[0] == "finetune":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, *args, **kwargs)


builtins.__import__ = import_without_posix
from finetune.cli.app import main

main()
"""


def test_the_quickstart_runs_without_posix_modules(tmp_path: Path) -> None:
    config = REPOSITORY / "configs" / "quickstart.yaml"
    values = [f"output_dir={tmp_path / 'run'}", "train.epochs=1", "features.cache=memory"]
    overrides = [word for value in values for word in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, "train", "--config", config, "--json", *overrides],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["epochs"] == 1
    assert summary["peak_memory_mib"] is None
