"""How often something was tried and held, for the record: a JSON line each, where
``FINETUNE_RECORD`` names a file."""

from __future__ import annotations

import json
import os
from pathlib import Path


def count_of(name: str, default: int) -> int:
    """How often to try: ``FINETUNE_COUNT_<NAME>``, or the default."""
    return int(os.environ.get(f"FINETUNE_COUNT_{name.upper()}", default))


def record(what: str, *, tried: int, held: int, **more: object) -> None:
    """Note an outcome; a test asserts on its own."""
    file = os.environ.get("FINETUNE_RECORD")
    if file:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"what": what, "tried": tried, "held": held, **more}) + "\n")
