"""Class folders: images with their splits and classes; imports no torch."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.core.errors import DataError
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
from finetune.data.sources.misnamed_photos import misnamed as misnamed_among

_SYSTEM_FOLDERS = frozenset(
    {"lost+found", "system volume information", "$recycle.bin", "recycler"}
    | {"__macosx", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"}
    | {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"}
    | {"~snapshot", "network trash folder", "temporary items"}
    | {".ipynb_checkpoints", "__pycache__"}
)
"""Lower-case names of folders that file systems, network drives and tools create.

They contain deleted files, thumbnails and copies, never a class.
"""
_SYSTEM_PATTERN = re.compile(r"\.trash-.*|found\.\d{3}", re.DOTALL)
"""Pattern of further names, in lower case, of such folders."""
_OLD_RECYCLE_BIN = "RECYCLED"
"""Name of the recycle bin on FAT drives; in lower case, it may be a class."""


@dataclass
class ClassFiles:
    """Content of a class folder, in an order independent of the file system."""

    images: list[str] = field(default_factory=list)
    num_bytes: int = 0
    skipped: list[str] = field(default_factory=list)
    """Files that are not images, by name and by content."""
    misnamed: list[str] = field(default_factory=list)
    """Files that are photos by content, but not by name."""
    hidden: list[str] = field(default_factory=list)
    """Files and folders whose names begin with a dot."""
    links: list[str] = field(default_factory=list)
    """Links that are not followed: dangling, or to a folder that is already read."""
    system: list[str] = field(default_factory=list)
    """Folders created by the system or a tool; those with a leading dot are also in ``hidden``."""


def _refuse_dangling_links(root: Path) -> None:
    """Reject dangling links, because a class or split would be silently missing."""
    for child in _children(root):
        if child.name.startswith(".") or child.suffix.lower() in IMAGE_SUFFIXES:
            continue
        if child.is_symlink() and not os.path.exists(child):  # noqa: PTH110
            raise DataError(
                "is a link to a folder that does not exist",
                kind="data.broken_link",
                path=child,
                to_do="repair or remove it",
            )


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders directly below a folder that are named as a split.

    A folder that directly contains photos and no class folders is not a split.

    Raises:
        DataError: Two folders would be the same split, or a link is dangling.
    """
    _refuse_dangling_links(root)
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        split = split_named(folder.name)
        if split is None or is_unsorted(folder):
            continue
        if split in found:
            raise DataError(
                f"both {found[split].name}/ and {folder.name}/ could be the {split} split",
                kind="data.two_split_folders",
                path=root,
                to_do="keep one",
            )
        found[split] = folder
    return found


def is_unsorted(folder: Path) -> bool:
    """Return whether a folder directly contains photos and no class folders."""
    return not subfolders(folder) and loose_photos(folder)


def loose_photos(folder: Path) -> bool:
    """Return whether a folder directly contains photos, in any format and under any name."""
    if loose_images(folder):
        return True
    children = [str(child) for child in _children(folder) if not child.name.startswith(".")]
    return any(map(is_other_photo, children)) or bool(misnamed_among(children))


def subfolders(root: Path) -> list[Path]:
    """Return the folders directly below a folder, except hidden and system folders."""
    return [
        child
        for child in _children(root)
        if not child.name.startswith(".") and not is_of_system(child.name) and _is_dir(child)
    ]


def system_folders(root: Path) -> list[str]:
    """Return the folders directly below a folder that the system or a tool created."""
    return [str(child) for child in _children(root) if is_of_system(child.name) and _is_dir(child)]


def is_of_system(name: str) -> bool:
    """Return whether a name is that of a folder of the system or of a tool."""
    lower = name.lower()
    return (
        lower in _SYSTEM_FOLDERS
        or name == _OLD_RECYCLE_BIN
        or _SYSTEM_PATTERN.fullmatch(lower) is not None
    )


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir(), key=lambda child: child.name)
    except OSError as error:
        raise DataError(f"cannot be read: {error}", kind="data.unreadable", path=root) from error


def _is_dir(path: Path | os.DirEntry[str]) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a circular link
        return False


def class_folders(folder: Path, *, but: Iterable[Path] = ()) -> dict[str, Path]:
    """Return the class folders by name in NFC.

    Raises:
        DataError: Two names are equal in NFC, a name is unprintable, or a link is dangling.
    """
    _refuse_dangling_links(folder)
    by_name: dict[str, Path] = {}
    for name, child in named_folders(folder, but=but):
        if name in by_name:
            raise DataError(
                f"two folders have the same name after Unicode normalization: {name!r}",
                kind="data.similar_class_names",
                path=folder,
                to_do="merge them, or rename one",
            )
        by_name[name] = child
    return by_name


def named_folders(folder: Path, *, but: Iterable[Path] = ()) -> list[tuple[str, Path]]:
    """Return the class folders with their names in NFC, which may repeat.

    Raises:
        DataError: A name is unprintable.
    """
    left_out = set(but)
    found: list[tuple[str, Path]] = []
    for child in subfolders(folder):
        if child in left_out:
            continue
        name = unicodedata.normalize("NFC", child.name)
        if not name.isprintable():
            raise DataError(
                "the name of this class folder contains unprintable characters",
                kind="data.unprintable_class_name",
                path=child,
                to_do="rename it",
            )
        found.append((name, child))
    return found


def loose_images(folder: Path) -> list[str]:
    """Return images directly in a folder of classes; they have no class and are skipped."""
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
    """Return the images below each class folder; classes are ordered by code point.

    Args:
        class_names: Classes that folders are matched with by name; by default the folder names.
        but: Folders that are not classes.

    Raises:
        DataError: There are fewer than two classes, a class without images, or an unknown class.
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
    hint = "; ".join(said for said in [*passed_over(links, misnamed), others] if said)
    if not paths:
        raise DataError(
            f"contains no images ({', '.join(sorted(IMAGE_SUFFIXES))})",
            kind="data.no_images",
            path=folder,
            to_do=hint,
        )
    if empty:
        raise DataError(
            "class without images",
            kind="data.empty_class",
            path=", ".join(map(shown, empty)),
            to_do=f"add images, or remove or hide the folder{'; ' if hint else ''}{hint}",
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
            "contains no class folders",
            kind="data.no_class_folders",
            path=folder,
            to_do=f"sort the images into one folder per class, as in {shown(folder)}/cats/1.jpg",
        )
    if class_names is None and len(found) < 2:
        ((name, only),) = found.items()
        inner = len(subfolders(only))
        hint = f"Did you mean {only}, with its {inner} folders?" if inner > 1 else ""
        raise DataError(
            f"contains one class folder ({name}); a classifier needs two or more",
            kind="data.one_class",
            path=folder,
            to_do=hint,
        )


def files_of_class(folder: Path) -> ClassFiles:
    """List everything below a class folder; links are followed, and each folder is read once.

    Raises:
        DataError: A folder cannot be read.
    """
    found = ClassFiles()
    read: set[str] = set()
    # A link must not lead to these folders or their parents: it would include other classes.
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
    """Add the content of a folder, and return its links to folders, with their parents.

    Args:
        real: Path of the folder with links resolved.
        read: Resolved paths of the folders that were read.
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
        raise DataError(
            f"cannot be read: {error.strerror}", kind="data.unreadable", path=folder
        ) from error


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link, reported when it is read
        return 0
