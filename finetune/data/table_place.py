"""From the paths or ids in a table to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune.config_data import TableConfig
from finetune.data.folders import subfolders
from finetune.data.images import IMAGE_SUFFIXES, shown
from finetune.data.table_text import cleaned
from finetune.errors import DataError, did_you_mean
from finetune.files import expand_user, is_folder

_SAMPLE = 20
_MOST_FOLDERS = 200


@dataclass(frozen=True)
class Place:
    """The folder that the paths of a table are relative to, and the suffix that they lack."""

    base: Path
    suffix: str = ""
    relative_to: str = "paths are relative to the table"

    def full(self, path: str) -> str:
        """The whole path, whether or not there is such a file."""
        end = "" if path.endswith(self.suffix) else self.suffix
        return os.path.normpath(os.path.join(self.base, path + end))  # noqa: PTH118

    def find(self, value: str) -> str | None:
        """The file that a value names; None where there is none.

        A value is taken as it is where there is such a file, for a name may begin with a space and
        hold a backslash; else without what surrounds it, and with the slashes of this system.
        """
        path = cleaned(value)
        for name in dict.fromkeys((value, path, path.replace("\\", "/"))):
            full = self.full(name)
            if os.path.lexists(full):
                return full
        return None

    def holds(self, values: Iterable[str]) -> bool:
        """Whether every value names a file."""
        found = [self.find(value) for value in values]
        return all(path is not None and os.path.isfile(path) for path in found)  # noqa: PTH113


def place_of(parent: Path, config: TableConfig) -> Place:
    """Where the files are that a table in ``parent`` names.

    A folder that is absent holds no files: `refuse_absent` says so where that matters.
    """
    if config.folder is None:
        return Place(parent, config.suffix or "")
    base = Path(os.path.normpath(parent / expand_user(config.folder)))
    return Place(base, config.suffix or "", f"paths are relative to {shown(base)}")


def refuse_absent(parent: Path, config: TableConfig) -> None:
    """Refuse a folder of the config that is not there.

    Raises:
        DataError: names the nearest folder that is.
    """
    base = place_of(parent, config).base
    if config.folder is not None and not is_folder(base):
        hint = "" if expand_user(config.folder).is_absolute() else "; it is relative to the table"
        known = did_you_mean(base.name, [path.name for path in subfolders(parent)])
        raise DataError(f"data.table.folder: {shown(base)}: no such folder{hint}.{known}")


def find_places(parent: Path, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each folder at or below a table, with a suffix, where the first of its paths are files.

    The folder is relative to ``parent``, and empty where it is that one.
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
    """The table's folder, the folders in it, and the folders in those."""
    yield ""
    try:
        within = [path.name for path in subfolders(parent)]
        yield from within
        for name in within:
            yield from (f"{name}/{path.name}" for path in subfolders(parent / name))
    except DataError:
        return
