"""Class folders: which images there are, in which split, of which class; imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.images import (
    IMAGE_SUFFIXES,
    Images,
    is_other_photo,
    other_photos,
    passed_over,
    refuse_unknown_classes,
    shown,
    split_named,
)
from finetune.data.misnamed import misnamed as misnamed_among
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
    """Files that are no images, by their names and by their content."""
    misnamed: list[str] = field(default_factory=list)
    """Files that are photos by their content, but not by their names."""
    hidden: list[str] = field(default_factory=list)
    """Files and folders whose names begin with a dot."""
    links: list[str] = field(default_factory=list)
    """Links that are not followed: to nowhere, or to a folder that is read already."""
    system: list[str] = field(default_factory=list)
    """Folders that the system or a tool made; those whose names begin with a dot are in
    ``hidden`` as well."""


def _refuse_dangling_links(root: Path) -> None:
    """A class or a split that a link does not reach would be missing without a word."""
    for child in _children(root):
        if child.name.startswith(".") or child.suffix.lower() in IMAGE_SUFFIXES:
            continue
        if child.is_symlink() and not os.path.exists(child):  # noqa: PTH110
            raise DataError(
                f"{shown(child)}: is a link to a folder that is not there; repair or remove it"
            )


def split_folders(root: Path) -> dict[str, Path]:
    """Find the splits directly below a folder: named as one, and not merely a folder of photos.

    Raises:
        DataError: two of them would be the same split, or a link leads to nowhere.
    """
    _refuse_dangling_links(root)
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
        DataError: two names are one, a name cannot be printed, or a link leads to nowhere.
    """
    _refuse_dangling_links(folder)
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
    links: list[str] = []
    misnamed: list[str] = []
    empty: list[Path] = []
    num_bytes = 0
    for label, name in enumerate(names):
        if name not in by_name:
            continue
        files = files_of_class(by_name[name])
        paths += map(Path, files.images)
        labels += [label] * len(files.images)
        skipped += files.skipped + files.system
        links += files.links
        misnamed += files.misnamed
        num_bytes += files.num_bytes
        if not files.images:
            empty.append(by_name[name])
    others = other_photos(skipped)
    hint = "".join(f"; {said}" for said in [*passed_over(links, misnamed), others] if said)
    if not paths:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){hint}")
    if empty:
        raise DataError(
            f"{', '.join(map(shown, empty))}: class without images; "
            f"add images, or remove or hide the folder{hint}"
        )
    return Images(
        tuple(paths),
        tuple(labels),
        names,
        skipped=tuple(map(Path, skipped)),
        links=tuple(map(Path, links)),
        misnamed=tuple(map(Path, misnamed)),
        num_bytes=num_bytes,
    )


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
    """Everything below a class folder; links to folders are followed, each folder read once.

    Raises:
        DataError: a folder cannot be read.
    """
    found = ClassFiles()
    read: set[str] = set()
    # Folders that a link must not lead back above: it would bring in other classes.
    around = (os.path.realpath(folder.parent),)
    links: deque[tuple[str, tuple[str, ...]]] = deque([(str(folder), ())])
    while links:
        place, above = links.popleft()
        real = os.path.realpath(place)
        if real in read or any(part == real or _is_below(part, real) for part in above):
            found.links.append(place)
            continue
        linked = _read_tree(place, real, read, found)
        links += [(path, (*around, *above, os.path.realpath(parent))) for parent, path in linked]
    photos = misnamed_among(found.skipped)
    if photos:
        found.misnamed = photos
        found.skipped = sorted(set(found.skipped) - set(photos))
    return found


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))  # noqa: PTH118


def _read_tree(place: str, real: str, read: set[str], found: ClassFiles) -> list[tuple[str, str]]:
    """Take in a folder without its links to folders, which are returned with their parents.

    Args:
        real: The folder without links in its path.
        read: Folders that were taken in, by such paths.
    """
    linked: list[tuple[str, str]] = []
    waiting = [place]
    while waiting:
        parent = waiting.pop()
        known = real + parent[len(place) :]
        if known in read:
            continue
        read.add(known)
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
                if entry.is_symlink():
                    linked.append((parent, entry.path))
                else:
                    inner.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                found.images.append(entry.path)
                found.num_bytes += _size(entry)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                found.links.append(entry.path)
            else:
                found.skipped.append(entry.path)
        waiting += reversed(inner)
    return linked


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
