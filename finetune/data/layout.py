"""Class folders that are probably none: parents of the splits, or of the classes themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from finetune.data.folders import class_folders, split_folders, subfolders
from finetune.data.images import IMAGE_SUFFIXES, shown, shown_few, split_named


@dataclass(frozen=True)
class Doubt:
    """Why what is read as classes may be none.

    Attributes:
        certain: Folders named as splits lie in every class; else they only have equal folders.
    """

    what: str
    todo: str
    certain: bool


def doubtful_layout(root: Path) -> Doubt | None:
    """A doubt about the folders that training reads as classes, if there are two or more.

    Folders within a class, such as one for each session, are common. It is doubted where no class
    holds a photo directly, and either all hold folders named as splits, or all the same folders.

    Raises:
        DataError: a folder cannot be read, or two have one name.
    """
    splits = split_folders(root)
    folder = splits.get("train", root)
    classes = class_folders(folder, but=splits.values())
    inner: list[set[str]] = []
    for place in classes.values():
        names = _folders_within(place)
        if not names:
            return None
        inner.append(names)
    if len(inner) < 2:
        return None
    read = f"{shown(folder)}: {shown_few(classes)} are read as classes"
    split_names = {name for names in inner for name in names if split_named(name)}
    if all(names & split_names for names in inner):
        return _with_splits(folder, classes, read, sorted(split_names))
    if len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        return Doubt(
            f"{read}, and each holds the folders {shown_few(sorted(inner[0]))}",
            "If those are the classes, join them in one folder, or let data.root be "
            f"{shown(next(iter(classes.values())))} or another.",
            certain=False,
        )
    return None


def _with_splits(folder: Path, classes: dict[str, Path], read: str, splits: list[str]) -> Doubt:
    what = f"{read}, but each holds split folders ({', '.join(map(shown, splits))})"
    first, place = next(iter(classes.items()))
    if any(subfolders(place / split) for split in splits if (place / split).is_dir()):
        todo = (
            f"Let data.root be {shown(place)} or another of them, or join their splits in one "
            "folder."
        )
    else:
        todo = f"Put the splits above the classes, as in {shown(folder / splits[0] / first)}."
    return Doubt(what, todo, certain=True)


def _folders_within(folder: Path) -> set[str]:
    """Names of the folders directly in a class folder; none where it holds a photo as well."""
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                return set()
            if entry.is_dir(follow_symlinks=False):
                names.add(entry.name)
    return names
