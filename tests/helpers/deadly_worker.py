"""Data loader worker that dies; a separate module, because every worker imports it."""

from __future__ import annotations

import os

from finetune.data.checks.worker_pool import Inspected, inspect_some


def deadly(places: list[tuple[int, str]]) -> Inspected:
    """Inspect files as `inspect_some` does; exit at a file named ``deadly``."""
    for _, path in places:
        if "deadly" in path:
            os._exit(1)
    return inspect_some(places)
