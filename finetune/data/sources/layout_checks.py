"""Checks of the folder layout: splits that may be classes, and classes that may be their parents.

A folder read as a class may contain the splits or the classes themselves.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.core.errors import DataError
from finetune.data.images import IMAGE_SUFFIXES, SPLITS, shown, shown_few, split_named
from finetune.data.sources.folders import (
    is_unsorted,
    loose_photos,
    named_folders,
    split_folders,
    subfolders,
    system_folders,
)


@dataclass(frozen=True)
class Doubt:
    """Doubt about whether the folders or labels read as classes are classes.

    Attributes:
        what: Description of the doubt.
        todo: Remedy.
        certain: Whether every class contains split folders, not only the same folders.
        kind: Subject of the doubt: layout or labels.
    """

    what: str
    todo: str
    certain: bool
    kind: str = "layout"

    @property
    def text(self) -> str:
        """Description and remedy in sentences."""
        return f"{self.what}. {self.todo}"


def refuse_unclear_splits(root: Path, known: Collection[str] = ()) -> None:
    """Reject folders that may be splits by their names and classes by their content.

    With a train folder that contains class folders, all names are clear, unless only folders of
    photos under other names lie beside it: it may be a class as well. Without one, a folder such
    as ``test`` that directly contains photos is either a class or a split that is not sorted into
    classes. The same applies if it contains folders, but none named as a class.

    Args:
        known: Names that are certainly classes, such as those of a checkpoint.

    Raises:
        DataError: There are such folders; the message gives both remedies.
    """
    splits = split_folders(root)
    if "train" in splits and not _is_among_classes(splits):
        return
    folders = [folder for folder in subfolders(root) if _nfc(folder) not in known]
    named = [folder for folder in folders if split_named(folder.name)]
    classes = {*known, *(_nfc(folder) for folder in folders if folder not in named)}
    unclear = [folder for folder in named if _is_unclear(folder, classes)]
    if not unclear:
        return
    first = unclear[0]
    holds = "hold" if len(unclear) > 1 else "holds"
    what = (
        f"{holds} photos directly"
        if all(map(loose_photos, unclear))
        else f"{holds} photos, and no folder named as a class"
    )
    example = next(iter(sorted(classes)), "cats")
    taken = {folder.name.lower() for folder in named}
    free = [name for name in SPLITS["train"] if name not in taken]
    move = f", or move all class folders into {shown(root / free[0])}" if free else ""
    raise DataError(
        f"{shown_few(f'{folder.name}/' for folder in unclear)} {what}, and may be a split or a "
        "class",
        kind="data.split_or_class",
        path=root,
        to_do=f"If it is a class, rename it, for example to {shown(first.name)}_class{move}. If it "
        "is a split, sort its photos into one folder per class, such as "
        f"{shown(first / example)}, or move it elsewhere",
    )


def _is_among_classes(splits: Mapping[str, Path]) -> bool:
    """Return whether a train folder lies beside folders of photos and beside no other split.

    There must be two or more such folders, and none may be named as a folder in the train folder.
    """
    train = splits["train"]
    beside = [folder for folder in subfolders(train.parent) if folder != train]
    if any(split_named(folder.name) for folder in beside):
        return False
    inner = {_nfc(child) for child in subfolders(train)}
    with_photos = {_nfc(folder) for folder in beside if loose_photos(folder)}
    return len(with_photos) > 1 and inner.isdisjoint(with_photos)


def _is_unclear(folder: Path, classes: Collection[str]) -> bool:
    if loose_photos(folder):
        return True
    inner = {_nfc(child) for child in subfolders(folder)}
    return bool(inner and classes) and inner.isdisjoint(classes)


def _nfc(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)


def refuse_unsorted(root: Path, split: str) -> None:
    """Reject a folder of this split that is not sorted into classes, instead of ignoring it.

    Raises:
        DataError: There is such a folder next to a train folder.
    """
    if "train" not in split_folders(root):
        return  # without one, unclear folders were rejected, and the others are classes
    for folder in subfolders(root):
        if split_named(folder.name) == split and is_unsorted(folder):
            raise DataError(
                "contains photos but no class folders",
                kind="data.no_class_folders",
                path=folder,
                to_do="sort the photos into one folder per class, as in "
                f"{shown(folder)}/cats/1.jpg, or move {shown(folder.name)} elsewhere",
            )


def unread_notes(root: Path) -> tuple[str, ...]:
    """Return notes on folders next to the splits that are not read, with the reasons."""
    splits = split_folders(root)
    if "train" not in splits:
        empty = [f"{place.name}/" for place in splits.values() if not subfolders(place)]
        if not empty:
            return ()
        return (
            f"{root}: not read, since the name is that of a split, but the folder contains neither "
            f"class folders nor photos: {shown_few(empty)}",
        )
    beside = [folder for folder in subfolders(root) if folder not in splits.values()]
    unsorted = [f"{folder.name}/" for folder in beside if split_named(folder.name)]
    others = [f"{folder.name}/" for folder in beside if not split_named(folder.name)]
    notes = []
    if others:
        notes.append(f"{root}: not read, since they are not splits: {shown_few(others)}")
    if unsorted:
        notes.append(
            f"{root}: not read, since it contains photos but no class folders: "
            f"{shown_few(unsorted)}"
        )
    return (*notes, *system_note(str(root), system_folders(root), root))


def system_note(name: str, folders: Sequence[str | Path], base: Path) -> tuple[str, ...]:
    """Return a note on skipped system folders, if any."""
    if not folders:
        return ()
    which = "a folder" if len(folders) == 1 else f"{len(folders):,} folders"
    return (
        f"{name}: skipped {which} of the system or of a tool, without photos of a class: "
        f"{shown_few(folders, base)}",
    )


def doubtful_layout(root: Path) -> Doubt | None:
    """Return a doubt about the folders that training reads as classes, if there are two or more.

    Folders within a class, such as one per session, are common. A doubt is returned if no class
    directly contains a photo, and either all contain split folders or all contain the same folders.

    Raises:
        DataError: A folder cannot be read.
    """
    splits = split_folders(root)
    folder = splits.get("train", root)
    classes = dict(named_folders(folder, but=splits.values()))
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
            f"{read}, and each contains the folders {shown_few(sorted(inner[0]))}",
            "If those are the classes, join them in one folder, or let data.root be "
            f"{shown(next(iter(classes.values())))} or another.",
            certain=False,
        )
    return None


def _with_splits(folder: Path, classes: dict[str, Path], read: str, splits: list[str]) -> Doubt:
    what = f"{read}, but each contains split folders ({', '.join(map(shown, splits))})"
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
    """Return the names of folders directly in a class folder; empty if it also has photos."""
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
