"""Mapping from the paths or ids in a table to files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune.config.data import TableConfig
from finetune.core.errors import DataError
from finetune.core.files import expand_user, is_folder
from finetune.core.text import did_you_mean
from finetune.data.images import IMAGE_SUFFIXES, shown, why_absent
from finetune.data.sources.folders import subfolders
from finetune.data.sources.table_text import cleaned

_SAMPLE = 20
_NEARLY_ALL = 0.9
_MOST_FOLDERS = 200


@dataclass(frozen=True)
class Place:
    """Folder that the paths of a table are relative to, and the suffix to append to them."""

    base: Path
    suffix: str = ""
    relative_to: str = "paths are relative to the table"

    def full(self, path: str) -> str:
        """Return the full path, whether or not the file exists."""
        has_suffix = path.lower().endswith(self.suffix.lower())
        end = "" if has_suffix else self.suffix
        return os.path.normpath(os.path.join(self.base, path + end))  # noqa: PTH118

    def find(self, value: str) -> str | None:
        """Return the path of the file that a value names, or None if there is none.

        The value is tried unchanged first, because a file name may begin with a space or contain a
        backslash. Then it is tried without surrounding white space and quotation marks, and last
        with forward slashes.
        """
        path = cleaned(value)
        for name in dict.fromkeys((value, path, path.replace("\\", "/"))):
            full = self.full(name)
            if os.path.lexists(full):
                return full
        return None

    def holds(self, values: Iterable[str]) -> bool:
        """Return whether nearly every value names a file; single files may be missing."""
        found = [self.find(value) for value in values]
        there = sum(path is not None and os.path.isfile(path) for path in found)  # noqa: PTH113
        return there >= _NEARLY_ALL * len(found)


def place_of(parent: Path, config: TableConfig) -> Place:
    """Return the place of the files that a table in ``parent`` names.

    The folder may be missing; `refuse_absent` rejects that.
    """
    if config.folder is None:
        return Place(parent, config.suffix or "")
    base = Path(os.path.normpath(parent / expand_user(config.folder)))
    return Place(base, config.suffix or "", f"paths are relative to {shown(base)}")


def refuse_absent(parent: Path, config: TableConfig) -> None:
    """Reject a folder of the config that does not exist.

    Raises:
        DataError: The folder does not exist; the message suggests the most similar name.
    """
    base = place_of(parent, config).base
    if config.folder is not None and not is_folder(base):
        hint = "" if expand_user(config.folder).is_absolute() else "; it is relative to the table"
        known = did_you_mean(base.name, [path.name for path in subfolders(parent)])
        raise DataError(
            f"no such folder{hint}",
            kind="data.not_found",
            key="data.table.folder",
            path=base,
            to_do=known,
        )


def absence(value: str, place: Place) -> str:
    """Return a message on a value that names no file, with the probable reason."""
    why = why_absent(value)
    if why.startswith("is a URL"):
        return f"{shown(value)}: {why}"
    why = place.relative_to
    if re.match(r"[A-Za-z]:[\\/]|/", value):
        why = f"the path is absolute; write it as it is below {shown(place.base)}"
    return f"no such file: {shown(value)}{place.suffix} ({why})"


def case_hint(value: str, place: Place) -> str:
    """Return a hint at a file whose name differs from that of a value only in case, or ""."""
    full = Path(place.full(value.replace("\\", "/")))
    try:
        names = [path.name for path in full.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    other = next((name for name in names if name.lower() == full.name.lower()), None)
    return (
        f"The file of {shown(full.name)} is called {shown(other)}; write names in the same case."
        if other
        else ""
    )


def find_places(parent: Path, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each folder at or below ``parent``, and suffix, with which most first values are files.

    The folder is relative to ``parent``, and empty for ``parent`` itself.
    """
    sample = values[:_SAMPLE]
    if not sample:
        return
    first = cleaned(sample[0]).replace("\\", "/")
    has_suffix = os.path.splitext(first)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
    known = sorted(IMAGE_SUFFIXES)
    suffixes = ["", *([] if has_suffix else [*known, *map(str.upper, known)])]
    for folder in islice(_folders(parent), _MOST_FOLDERS):
        for suffix in suffixes:
            place = Place(parent / folder, suffix)
            if place.holds(sample):
                yield folder, suffix


def _folders(parent: Path) -> Iterator[str]:
    """Yield the table's folder and the folders up to two levels below it."""
    yield ""
    try:
        within = [path.name for path in subfolders(parent)]
        yield from within
        for name in within:
            yield from (f"{name}/{path.name}" for path in subfolders(parent / name))
    except DataError:
        return
