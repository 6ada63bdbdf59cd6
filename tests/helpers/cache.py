"""Cache folders of tests, which share what was timed."""

from __future__ import annotations

import os
from pathlib import Path

FORMS = "FINETUNE_TEST_FORMS"
"""Environment variable with the folder of the timings that the tests of a session share."""


def new_cache(folder: Path) -> str:
    """Return a folder for XDG_CACHE_HOME that holds nothing but the shared timings."""
    own = folder / "finetune"
    own.mkdir(parents=True)
    (own / "forms").symlink_to(os.environ[FORMS], target_is_directory=True)
    return str(folder)
