"""Photos that links put into two classes, or into both splits; imports no torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from finetune.core.errors import DataError
from finetune.data.images import Images, shown, shown_few

_MOST_LINKS = 40
"""Number of links in a row that Linux follows."""

Place = tuple[int, int]
"""Position of a split, and label of a class."""


def refuse_shared_folders(train: Images, val: Images) -> None:
    """Reject a folder that links put into both splits of class folders.

    Raises:
        DataError: There is such a folder; the message gives both of its paths.
    """
    folders = {os.path.realpath(path): path for path in _folders(train)}
    for folder in sorted(_folders(val)):
        other = folders.get(os.path.realpath(folder))
        if other is not None:
            raise DataError(
                f"is a link to the folder {shown(other)}, so its photos would be in both train "
                "and val",
                kind="data.shared_folder",
                path=folder,
                to_do="remove the link",
            )


def shared_files(*parts: Images) -> list[str]:
    """Return a warning on photos that links put into two classes or into both splits."""
    real_folder = functools.cache(os.path.realpath)
    folders = {folder for images in parts for folder in _folders(images)}
    has_links = len({real_folder(folder) for folder in folders}) < len(folders)
    if not has_links and not any(os.path.islink(path) for path, _ in _places(parts)):  # noqa: PTH114
        return []

    def real(path: str) -> str:
        for _ in range(_MOST_LINKS):
            if not os.path.islink(path):  # noqa: PTH114
                break
            path = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH118, PTH120
        folder, name = os.path.split(path)
        return os.path.join(real_folder(folder), name)  # noqa: PTH118

    first: dict[str, tuple[Place, str]] = {}
    shared: list[str] = []
    for path, place in _places(parts):
        before, other = first.setdefault(real(path), (place, path))
        if before != place:
            shared.append(f"{path} (also {other})")
    if not shared:
        return []
    return [
        f"{len(shared):,} photo{'' if len(shared) == 1 else 's'} also read, by links, as another "
        f"class or in the other split: {shown_few(shared)}; remove the links"
    ]


def _folders(images: Images) -> set[str]:
    return {os.path.dirname(path) for path in map(str, images.paths)}  # noqa: PTH120


def _places(parts: tuple[Images, ...]) -> Iterator[tuple[str, Place]]:
    for number, images in enumerate(parts):
        for path, label in zip(images.paths, images.labels, strict=True):
            yield str(path), (number, label)
