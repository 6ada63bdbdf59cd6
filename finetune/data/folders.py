"""Class folders: which images there are, in which split, of which class; imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.images import (
    IMAGE_SUFFIXES,
    Images,
    is_other_photo,
    other_photos,
    refuse_unknown_classes,
    shown,
    split_named,
)
from finetune.errors import DataError

_SYSTEM_FOLDERS = frozenset(
    {"lost+found", "system volume information", "$recycle.bin", "recycler", "found.000"}
    | {"__macosx", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"}
    | {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"}
    | {".ipynb_checkpoints", "__pycache__"}
)
"""Names, in lower case, of folders that file systems, network drives and tools create: they hold
deleted files, thumbnails and copies, never a class."""
_SYSTEM_PREFIXES = (".trash-",)


@dataclass
class ClassFiles:
    """What lies below a class folder, in an order that no file system decides."""

    images: list[str] = field(default_factory=list)
    num_bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    """Files that are no images by their names."""
    hidden: list[str] = field(default_factory=list)
    """Files and folders whose names begin with a dot."""
    links: list[str] = field(default_factory=list)
    """Links to folders, which are not followed: they may lead in a circle."""
    system: list[str] = field(default_factory=list)
    """Folders that the system or a tool made; those whose names begin with a dot are in
    ``hidden`` as well."""


def split_folders(root: Path) -> dict[str, Path]:
    """Find the splits directly below a folder: named as one, and not merely a folder of photos.

    Raises:
        DataError: two of them would be the same split.
    """
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        split = split_named(folder.name)
        if split is None or is_unsorted(folder):
            continue
        if split in found:
            raise DataError(
                f"{root}: both {found[split].name}/ and {folder.name}/ could be the {split} "
                "split; keep one"
            )
        found[split] = folder
    return found


def is_unsorted(folder: Path) -> bool:
    """Whether a folder holds photos directly and no folders of classes."""
    return not subfolders(folder) and loose_photos(folder)


def loose_photos(folder: Path) -> bool:
    """Whether photos are directly in a folder, in whatever format."""
    return bool(loose_images(folder)) or any(map(is_other_photo, _children(folder)))


def subfolders(root: Path) -> list[Path]:
    """Folders directly below a folder, except hidden ones and those of the system."""
    return [
        child
        for child in _children(root)
        if not child.name.startswith(".") and not is_of_system(child.name) and _is_dir(child)
    ]


def system_folders(root: Path) -> list[str]:
    """Folders directly below a folder that the system or a tool made."""
    return [str(child) for child in _children(root) if is_of_system(child.name) and _is_dir(child)]


def is_of_system(name: str) -> bool:
    """Whether a folder's name is one that systems and tools give to their own folders."""
    return name.lower().startswith(_SYSTEM_PREFIXES) or name.lower() in _SYSTEM_FOLDERS


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir(), key=lambda child: child.name)
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error}") from error


def _is_dir(path: Path | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def class_folders(folder: Path, *, but: Iterable[Path] = ()) -> dict[str, Path]:
    """Class folders by name in NFC.

    Raises:
        DataError: two names are one, or a name cannot be printed.
    """
    by_name: dict[str, Path] = {}
    for name, child in named_folders(folder, but=but):
        if name in by_name:
            raise DataError(
                f"{folder}: two folders are both named {name!r} once Unicode is normalised; join "
                "them, or rename one"
            )
        by_name[name] = child
    return by_name


def named_folders(folder: Path, *, but: Iterable[Path] = ()) -> list[tuple[str, Path]]:
    """Class folders with their names in NFC, which may repeat.

    Raises:
        DataError: a name cannot be printed.
    """
    left_out = set(but)
    found: list[tuple[str, Path]] = []
    for child in subfolders(folder):
        if child in left_out:
            continue
        name = unicodedata.normalize("NFC", child.name)
        if not name.isprintable():
            raise DataError(
                f"{shown(child)}: this name of a class folder holds characters that cannot be "
                "printed; rename it"
            )
        found.append((name, child))
    return found


def loose_images(folder: Path) -> list[str]:
    """Images directly in a folder of classes: of no class, so that they are skipped."""
    return [
        str(child)
        for child in _children(folder)
        if child.suffix.lower() in IMAGE_SUFFIXES
        and not child.name.startswith(".")
        and not _is_dir(child)
    ]


def read_classes(
    folder: Path, *, class_names: tuple[str, ...] | None = None, but: Iterable[Path] = ()
) -> Images:
    """Images below each class folder; classes are matched by name, ordered by code point.

    Raises:
        DataError: fewer than two classes, one without images, or one that is unknown.
    """
    by_name = class_folders(folder, but=but)
    _check_class_folders(folder, by_name, class_names)
    names = class_names or tuple(sorted(by_name))
    paths: list[Path] = []
    labels: list[int] = []
    skipped = loose_images(folder) + system_folders(folder)
    empty: list[Path] = []
    num_bytes = 0
    for label, name in enumerate(names):
        if name not in by_name:
            continue
        files = files_of_class(by_name[name])
        paths += map(Path, files.images)
        labels += [label] * len(files.images)
        skipped += files.skipped + files.links + files.system
        num_bytes += files.num_bytes
        if not files.images:
            empty.append(by_name[name])
    others = other_photos(skipped)
    hint = f"; {others}" if others else ""
    if not paths:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){hint}")
    if empty:
        raise DataError(
            f"{', '.join(map(shown, empty))}: class without images; "
            f"add images, or remove or hide the folder{hint}"
        )
    return Images(tuple(paths), tuple(labels), names, tuple(map(Path, skipped)), num_bytes)


def _check_class_folders(
    folder: Path, found: dict[str, Path], class_names: Sequence[str] | None
) -> None:
    if class_names is not None:
        refuse_unknown_classes(found, class_names, lambda name: folder / name)
    if not found:
        raise DataError(
            f"{folder}: holds no class folders; images must lie in one folder per class, "
            f"as in {folder}/cats/1.jpg"
        )
    if class_names is None and len(found) < 2:
        ((name, only),) = found.items()
        inner = len(subfolders(only))
        hint = f". Is data.root meant to be {only}, with its {inner} folders?" if inner > 1 else ""
        raise DataError(
            f"{folder}: holds one class folder ({name}); a classifier needs two or more{hint}"
        )


def files_of_class(folder: Path) -> ClassFiles:
    """Everything below a class folder.

    Raises:
        DataError: a folder cannot be read.
    """
    found = ClassFiles()
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        inner: list[str] = []
        for entry in _entries(parent):
            of_system = is_of_system(entry.name) and _is_dir(entry)
            if of_system:
                found.system.append(entry.path)
            if entry.name.startswith("."):
                found.hidden.append(entry.path)
            elif of_system:
                continue
            elif _is_dir(entry):
                (found.links if entry.is_symlink() else inner).append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                found.images.append(entry.path)
                found.num_bytes += _size(entry)
            else:
                found.skipped.append(entry.path)
        waiting += reversed(inner)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read: {error.strerror}") from error


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere: reading it will say so
        return 0
