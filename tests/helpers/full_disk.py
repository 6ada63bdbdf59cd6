"""Program that writes files on a small disk of its own, and prints the outcome as JSON.

python helpers/full_disk.py FOLDER fill          save with 0, 1, 2, … free pages until it succeeds
python helpers/full_disk.py FOLDER read-only CONFIG    commands on a read-only disk
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.checkpoints.checkpoint import save_checkpoint
from finetune.cli import app
from finetune.config.schema import Config
from finetune.core.errors import OutputError
from finetune.core.files import sha256_of
from helpers.small_checkpoint import few_tensors, small_checkpoint

_PAGE = 4096


def fill(folder: Path) -> dict[str, Any]:
    """Leave so many free pages and save over an old checkpoint, until one more page is enough."""
    config = Config.model_validate(
        {
            "model": {
                "name": "shufflenet_v2_x0_5",
                "weights": "none",
                "preprocessing": {"resize": 36, "crop": 32},
            },
            "data": {"root": "unread"},
            "output_dir": "unwritten",
        }
    )
    _, metadata = small_checkpoint(config)
    path, ballast = folder / "best.pt", folder / "ballast"
    save_checkpoint(path, few_tensors(4, 1.0), metadata)
    before, names = sha256_of(path), {"best.pt", "ballast"}
    lost: list[str] = []
    said: set[str] = set()
    for pages in range(200):
        ballast.unlink(missing_ok=True)
        status = os.statvfs(folder)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - pages * _PAGE)
        try:
            save_checkpoint(path, few_tensors(4, 2.0), metadata)
        except OutputError as error:
            said.add(str(error))
            if sha256_of(path) != before or {p.name for p in folder.iterdir()} != names:
                lost.append(f"{pages} pages")
        else:
            return {"tried": pages + 1, "lost": lost, "said": sorted(said)}
    raise AssertionError("no save passed")


def read_only(folder: Path, config: str) -> dict[str, Any]:
    """What `train` answers where the run folder, or the features, lie on such a disk."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    answers = {}
    for key in ("output_dir", "features.dir"):
        errors = io.StringIO()
        sys.argv = ["finetune", "train", "--config", config, "--set", f"{key}={folder / 'x'}"]
        sys.argv += ["--set", "features.cache=disk"]  # auto would take memory
        with contextlib.redirect_stderr(errors):
            code = app._run()
        answers[key] = {"code": code, "said": errors.getvalue()}
    return answers


if __name__ == "__main__":
    place, mode, *rest = sys.argv[1:]
    run = {"fill": fill, "read-only": read_only}[mode]
    print(json.dumps(run(Path(place), *rest)))
