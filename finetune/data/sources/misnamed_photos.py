"""Detection of photos without an image suffix; imports no torch."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from finetune.data.images import is_other_photo

_TRIED = 20
"""Number of files per suffix to open first; the others are opened only if one is a photo."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def misnamed(paths: Sequence[str]) -> list[str]:
    """Return those files that are photos by content, in the given order."""
    by_ending: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if not is_other_photo(path):
            by_ending[os.path.splitext(path)[1].lower()].append(path)  # noqa: PTH122
    found: set[str] = set()
    for some in by_ending.values():
        tried = {path for path in some[:_TRIED] if _is_photo(path)}
        found |= tried
        if tried:
            found |= {path for path in some[_TRIED:] if _is_photo(path)}
    return [path for path in paths if path in found]


def _is_photo(path: str) -> bool:
    try:
        if not os.path.isfile(path):  # noqa: PTH113
            return False  # reading a pipe could block forever
        with open(path, "rb") as file:  # noqa: PTH123
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
