"""Class folders: which images there are, in which split, of which class; imports no torch."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import DataConfig
from finetune.data.demo import demo_root
from finetune.errors import DataError, OutputError, did_you_mean
from finetune.files import exists, expand_user, is_folder
from finetune.keyed import seed_for
from finetune.progress import Progress

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}
)
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
DEMO = "demo"


@dataclass(frozen=True)
class Images:
    """Images of one split with their labels.

    Attributes:
        labels: Index into ``class_names`` for each path.
        skipped: Files among them that are no images.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    skipped: tuple[Path, ...] = ()
    num_bytes: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        share = len(indices) / max(len(self), 1)
        return Images(
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.class_names,
            num_bytes=round(self.num_bytes * share),
        )


@dataclass(frozen=True)
class TrainVal:
    """What a training run reads, and one line on how it was found."""

    train: Images
    val: Images
    notes: tuple[str, ...]


def find_train_val(
    config: DataConfig,
    *,
    seed: int,
    class_names: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> TrainVal:
    """Find training and validation images; without a val folder a seeded share is held out.

    Args:
        class_names: What labels mean; by default the names of train's class folders.

    Raises:
        DataError: no such folder, fewer than two classes, an empty class, a class in val that
            train lacks.
    """
    root = data_root(config.root, progress)
    splits = _split_folders(root)
    if "train" in splits:
        train = _read_classes(splits["train"], class_names=class_names)
        if "val" in splits:
            val = _read_classes(splits["val"], class_names=train.class_names)
            return TrainVal(train, val, _skipped_notes(root, train, val))
        why = f"{root} has no val folder"
    elif "val" in splits:
        raise DataError(f"{root}: has {splits['val'].name}/ but no train/ beside it")
    else:
        # A test folder beside class folders is a split, no class: never trained on.
        train = _read_classes(root, class_names=class_names, but=tuple(splits.values()))
        why = f"{root} has no train and val folders"
    for label, name in enumerate(train.class_names):
        if train.labels.count(label) == 1:
            raise DataError(
                f"{root}: class {name!r} has a single image, which cannot be both trained on and "
                "held out; add images or a val folder"
            )
    train_at, val_at = stratified_split(train.labels, config.val_fraction, seed=seed)
    note = (
        f"{why}: {len(val_at)} of {len(train)} images held out for validation "
        f"(data.val_fraction {config.val_fraction:g}, stratified, seed {seed})"
    )
    notes = (note, *_skipped_notes(root, train))
    return TrainVal(train.subset(train_at), train.subset(val_at), notes)


def find_split(
    config: DataConfig,
    split: str,
    *,
    class_names: Sequence[str],
    seed: int,
    root: str | None,
    progress: Progress | None = None,
) -> Images:
    """The images of one split, labelled by the given class names.

    Args:
        root: Another folder than the config's: of splits, or of classes (then ``split`` is moot).

    Raises:
        DataError: as `find_train_val`, or the split is absent.
    """
    if root is not None:
        config = config.model_copy(update={"root": root})
    folder = data_root(config.root, progress)
    splits = _split_folders(folder)
    if root is not None and not splits:
        return _read_classes(folder, class_names=tuple(class_names))
    stands_alone = split in splits and (split != "train" or "val" in splits)
    if stands_alone:
        return _read_classes(splits[split], class_names=tuple(class_names))
    if split == "test":
        has = f"; it has {', '.join(sorted(splits))}" if splits else ""
        raise DataError(f"{folder}: has no test folder{has}")
    found = find_train_val(config, seed=seed, class_names=tuple(class_names))
    return found.train if split == "train" else found.val


def data_root(root: str, progress: Progress | None = None) -> Path:
    """The folder that ``data.root`` names; the demo set is drawn on first use.

    Raises:
        DataError: it is absent or no folder.
    """
    if root == DEMO:
        try:
            return demo_root(progress)
        except OSError as error:
            raise OutputError(
                f"the demo images could not be drawn into the user's cache folder: {error}. "
                "Set XDG_CACHE_HOME to a folder that can be written."
            ) from error
    folder = expand_user(root)
    if not exists(folder):
        parent = folder.parent
        names = [p.name for p in parent.iterdir() if p.is_dir()] if is_folder(parent) else []
        raise DataError(
            f"data.root: {folder}: no such folder.{did_you_mean(folder.name, names)} "
            "Paths are relative to the working directory."
        )
    if not folder.is_dir():
        raise DataError(f"data.root: {folder}: is a file; it must hold class folders")
    return folder


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        for split, names in SPLIT_FOLDERS.items():
            if folder.name.lower() not in names:
                continue
            if split in found:
                raise DataError(
                    f"{root}: both {found[split].name}/ and {folder.name}/ could be the {split} "
                    "split; keep one"
                )
            found[split] = folder
    return found


def _subfolders(root: Path) -> list[Path]:
    """Folders directly below, hidden ones (such as .ipynb_checkpoints) left out."""
    try:
        children = sorted(root.iterdir())
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error}") from error
    return [child for child in children if child.is_dir() and not child.name.startswith(".")]


def _read_classes(
    folder: Path, *, class_names: tuple[str, ...] | None = None, but: tuple[Path, ...] = ()
) -> Images:
    """Images below each class folder; classes are matched by name in NFC, by code point."""
    by_name: dict[str, Path] = {}
    for child in _subfolders(folder):
        if child in but:
            continue
        name = unicodedata.normalize("NFC", child.name)
        if name in by_name:
            raise DataError(
                f"{folder}: two folders are both named {name!r} once Unicode is normalised; "
                "rename one"
            )
        by_name[name] = child
    _check_class_folders(folder, list(by_name), class_names)
    names = class_names or tuple(sorted(by_name))
    paths: list[Path] = []
    labels: list[int] = []
    skipped = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    empty: list[Path] = []
    num_bytes = 0
    for label, name in enumerate(names):
        if name not in by_name:
            continue
        before = len(paths)
        for path, size in _files(by_name[name]):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                paths.append(path)
                labels.append(label)
                num_bytes += size
            else:
                skipped.append(path)
        if len(paths) == before:
            empty.append(by_name[name])
    if not paths:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if empty:
        raise DataError(
            f"{', '.join(map(str, empty))}: class without images; "
            "add images, or remove or hide the folder"
        )
    return Images(tuple(paths), tuple(labels), names, tuple(skipped), num_bytes)


def _check_class_folders(
    folder: Path, found: list[str], class_names: tuple[str, ...] | None
) -> None:
    if class_names is not None:
        _refuse_unknown_classes(folder, found, class_names)
    if not found:
        raise DataError(
            f"{folder}: holds no class folders; images must lie in one folder per class, "
            f"as in {folder}/cats/1.jpg"
        )
    if class_names is None and len(found) < 2:
        raise DataError(
            f"{folder}: holds one class folder ({found[0]}); a classifier needs two or more"
        )


def _refuse_unknown_classes(folder: Path, found: Sequence[str], class_names: Sequence[str]) -> None:
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise DataError(
            f"{folder / unknown[0]}: class {unknown[0]!r} is unknown in training."
            f"{did_you_mean(unknown[0], class_names)} Known: {', '.join(class_names[:20])}"
            f"{' …' if len(class_names) > 20 else ''}."
        )


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every visible file below, in an order that no file system decides, with its size."""
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent, name)
                yield path, path.stat().st_size if path.exists() else 0


def _raise_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def stratified_split(
    labels: Sequence[int], fraction: float, *, seed: int
) -> tuple[list[int], list[int]]:
    """Positions to train on and positions held out, each class in proportion, seeded.

    Every class of two or more images keeps at least one on each side.
    """
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    held_out: list[int] = []
    for label, positions in sorted(by_label.items()):
        count = min(max(1, round(len(positions) * fraction)), len(positions) - 1)
        shuffled = list(positions)
        random.Random(seed_for(seed, "split", label)).shuffle(shuffled)
        held_out += shuffled[:count]
    chosen = set(held_out)
    return [i for i in range(len(labels)) if i not in chosen], sorted(held_out)


def _skipped_notes(root: Path, *images: Images) -> tuple[str, ...]:
    skipped = [path for part in images for path in part.skipped]
    if not skipped:
        return ()
    shown = ", ".join(str(path.relative_to(root)) for path in skipped[:3])
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return (f"{root}: skipped {len(skipped)} that are no images: {shown}{more}",)
