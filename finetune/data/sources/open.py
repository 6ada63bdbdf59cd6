"""Opening of ``data.root``: class folders, a table, a torchvision dataset or the demo set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.config.data import DEMO, TORCHVISION, DataConfig, is_table
from finetune.core.errors import DataError, OutputError
from finetune.core.files import exists, expand_user, is_folder
from finetune.core.reporter import Reporter
from finetune.data.images import (
    IMAGE_SUFFIXES,
    Images,
    TrainVal,
    is_other_photo,
    is_pattern,
    near,
    other_photos,
    passed_over,
    refuse_alike,
    shown,
    shown_few,
)
from finetune.data.sources.corrections import Corrections, read_corrections
from finetune.data.sources.demo import demo_root
from finetune.data.sources.folders import class_folders, is_of_system, read_classes, split_folders
from finetune.data.sources.layout_checks import (
    Doubt,
    doubtful_layout,
    refuse_unclear_splits,
    refuse_unsorted,
    system_note,
    unread_notes,
)
from finetune.data.sources.shared_links import refuse_shared_folders, shared_files
from finetune.data.sources.table import Table, read_table
from finetune.data.sources.table_guess import elsewhere
from finetune.data.splits.holdout import group_by_pattern, hold_out, refuse_shared_groups

Names = tuple[str, ...] | None

_NOTHING_HELD_OUT = (
    "data.val_fraction 0: all images are used for training, so no accuracy is measured; best.pt "
    "contains the last epoch"
)
_VAL_IS_THERE = (
    "{name}: data.val_fraction 0 has no effect, because the data has a val {part}, whose {number} "
    "images are not trained on; to train on all images, move them to train"
)


@dataclass(frozen=True)
class Source:
    """Source of images.

    Attributes:
        base: Folder that paths are relative to in messages and for ``data.group_pattern``.
        splits: Splits of the data itself; empty if it is not split.
        read: Function that returns the images of a split (None: of a whole table, or of the class
            folders outside the split folders), labelled by the given class names (None: by the
            data's own).
        classes: Function that returns the data's own classes in a split.
        parts: Word for a split in messages: folder or split.
        doubt: Reason why the supposed classes may not be classes.
        parents: Folders whose subfolders are all classes; empty except for class folders.
        corrections: Corrections of labels; None without ``data.corrections``.
    """

    name: str
    base: Path
    splits: tuple[str, ...]
    read: Callable[[str | None, Names], Images]
    classes: Callable[[str | None], tuple[str, ...]]
    parts: str = "folder"
    notes: tuple[str, ...] = ()
    doubt: Doubt | None = None
    parents: tuple[Path, ...] = ()
    corrections: Corrections | None = None

    def corrected(self, split: str | None, class_names: Names) -> Images:
        """Return the images of a split with corrected labels."""
        images = self.read(split, class_names)
        return images if self.corrections is None else self.corrections.applied(images)


def find_train_val(
    config: DataConfig,
    *,
    seed: int,
    class_names: tuple[str, ...] | None = None,
    reporter: Reporter | None = None,
) -> TrainVal:
    """Find training and validation images; without a val split, a seeded share is held out.

    Args:
        class_names: Class of each label; by default the class names of the train split.

    Raises:
        DataError: The data does not exist, has fewer than two classes or an empty class, or val has
            a class that train lacks.
    """
    return read_train_val(open_source(config, reporter), config, seed=seed, class_names=class_names)


def read_train_val(
    source: Source, config: DataConfig, *, seed: int, class_names: Names = None
) -> TrainVal:
    """Return the training and validation images of an open source; see `find_train_val`."""
    try:
        found = _read_train_val(source, config, seed, class_names)
    except DataError as error:
        if source.doubt is None:
            raise
        raise error.at(also=f"{source.name}: {source.doubt.text}") from None
    if source.corrections is None:
        return found
    return source.corrections.applied_to_run(found, partial(_test_photos, source, class_names))


def _test_photos(source: Source, class_names: Names) -> tuple[Path, ...]:
    """Return the photos of the data that are neither for training nor for validation."""
    return source.read("test", class_names).paths if "test" in source.splits else ()


def _read_train_val(source: Source, config: DataConfig, seed: int, class_names: Names) -> TrainVal:
    notes = list(source.notes)
    _refuse_without_train(source)
    train = source.read("train" if "train" in source.splits else None, class_names)
    if class_names is None and not config.root.startswith(TORCHVISION):
        refuse_alike(source.name, train.class_names)
    if config.group_pattern:
        train, note = group_by_pattern(train, config.group_pattern, base=source.base)
        notes.append(note)
    if "val" in source.splits:
        val = source.read("val", train.class_names)
        if config.group_pattern:
            val, _ = group_by_pattern(val, config.group_pattern, base=source.base)
        refuse_shared_groups(train, val)
        if source.parts == "folder":
            refuse_shared_folders(train, val)
        if not config.val_fraction:
            number = f"{len(val):,}"
            notes.append(_VAL_IS_THERE.format(name=source.name, part=source.parts, number=number))
        notes += _skipped_notes(source, train, val)
        warnings = _warnings(source, train, val)
        return TrainVal(
            train,
            val,
            notes=tuple(notes),
            base=source.base,
            warnings=warnings,
            parents=source.parents,
        )
    if source.parts == "folder":
        refuse_unsorted(source.base, "val")
    if not config.val_fraction:
        notes += (_NOTHING_HELD_OUT, *_skipped_notes(source, train))
        return TrainVal(
            train,
            train.subset(()),
            notes=tuple(notes),
            base=source.base,
            warnings=_warnings(source, train),
            parents=source.parents,
        )
    kept, val = hold_out(train, config.val_fraction, seed=seed, base=source.base)
    parts = source.parts
    lacks = f"no val {parts}" if "train" in source.splits else f"no train and val {parts}s"
    how = "whole groups, " if train.groups else ""
    notes.append(
        f"{source.name} has {lacks}: {len(val):,} of {len(train):,} images held out for "
        f"validation (data.val_fraction {config.val_fraction:g}, {how}stratified, seed {seed})"
    )
    notes += _skipped_notes(source, train)
    warnings = _warnings(source, train)
    return TrainVal(
        kept,
        val,
        notes=tuple(notes),
        base=source.base,
        held_out=True,
        warnings=warnings,
        parents=source.parents,
    )


def _refuse_without_train(source: Source) -> None:
    """Reject a source without training images.

    Each row of a table belongs to a split. Class folders next to a test folder, however, are used
    for training.
    """
    if "train" in source.splits:
        return
    if "val" in source.splits:
        raise DataError(
            f"has a val {source.parts} but no train {source.parts}",
            kind="data.no_train_split",
            path=source.name,
            to_do=f"add a train {source.parts}",
        )
    if source.splits and source.parts != "folder":
        raise DataError(
            "has a test split but no train split",
            kind="data.no_train_split",
            path=source.name,
            to_do="name train in the rows to train on, or remove the split column",
        )


def find_split(
    config: DataConfig,
    split: str,
    *,
    class_names: Sequence[str],
    seed: int,
    root: str | None,
    reporter: Reporter | None = None,
) -> Images:
    """Return the images of one split, labelled by the given class names.

    Args:
        root: Data to use instead of the config's; without splits, ``split`` is ignored.

    Raises:
        DataError: As in `find_train_val`, or the split is missing.
    """
    images, _, _ = find_known(
        config, split, class_names=class_names, seed=seed, root=root, reporter=reporter
    )
    return images


def find_known(
    config: DataConfig,
    split: str,
    *,
    class_names: Sequence[str],
    seed: int,
    root: str | None,
    ignore_unknown: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Images, int, str | None]:
    """Return the images of a split, the number of omitted images and the split; see `find_split`.

    The split is None if the data has no splits, so that all of its images are returned.

    Args:
        ignore_unknown: Whether to omit images of classes that are not in ``class_names``.

    Raises:
        DataError: As in `find_split`.
    """
    names = tuple(class_names)
    try:
        if root is not None:
            config = elsewhere(config, root, reporter)
        source = open_source(config, reporter, known=names)
    except DataError as error:
        if root is None or error.key != "data.root":
            raise
        raise error.at(key="--data") from None
    read = _read_known if ignore_unknown else _read_all
    if root is not None and not source.splits:
        return *read(source, None, names), None
    stands_alone = split in source.splits and (split != "train" or "val" in source.splits)
    if stands_alone:
        return *read(source, split, names), split
    none_to_train = source.parts == "split" and source.splits and "train" not in source.splits
    if split == "test" or none_to_train:
        if source.parts == "folder":
            refuse_unsorted(source.base, split)
        has = f"; it has {', '.join(sorted(source.splits))}" if source.splits else ""
        raise DataError(
            f"has no {split} {source.parts}{has}", kind="data.no_such_split", path=source.name
        )
    found = read_train_val(source, config, seed=seed, class_names=names)
    if split == "val" and not len(found.val):
        raise DataError(
            "has no validation images, since data.val_fraction is 0",
            kind="data.no_such_split",
            path=source.name,
            to_do="evaluate other images with --data, or a test split with --split test",
        )
    return (found.train if split == "train" else found.val), 0, split


def _read_all(source: Source, split: str | None, names: tuple[str, ...]) -> tuple[Images, int]:
    return source.corrected(split, names), 0


def _read_known(source: Source, split: str | None, names: tuple[str, ...]) -> tuple[Images, int]:
    """Return the images of known classes and the number of the other images."""
    unknown = tuple(name for name in source.classes(split) if name not in set(names))
    images = source.corrected(split, (*names, *unknown))
    kept = [at for at, label in enumerate(images.labels) if label < len(names)]
    if not kept:
        raise DataError(
            "contains no image of a class that the network was trained on: "
            f"{', '.join(names[:20])}{' …' if len(names) > 20 else ''}",
            kind="data.no_known_class",
            path=source.name,
        )
    return replace(images.subset(kept), class_names=names), len(images) - len(kept)


def open_source(
    config: DataConfig, reporter: Reporter | None = None, *, known: Collection[str] = ()
) -> Source:
    """Open the source that ``data.root`` names; the demo set is drawn on first use.

    Args:
        known: Names of folders that are classes, even if they could be splits.

    Raises:
        DataError: The source is missing, of an unknown kind, or its splits are unclear.
        OutputError: The user's cache folder cannot be written.
    """
    source = _opened(config, reporter, known)
    if config.corrections is None:
        return source
    return replace(source, corrections=read_corrections(config.corrections, source.base))


def _opened(config: DataConfig, reporter: Reporter | None, known: Collection[str]) -> Source:
    if config.root.startswith(TORCHVISION):
        from finetune.data.sources.torchvision_datasets import read_torchvision

        return _source_of_table(read_torchvision(config, reporter))
    if is_table(config.root) and not is_folder(expand_user(config.root)):
        return _source_of_table(read_table(config))
    return _source_of_folders(data_root(config.root, reporter), known)


def _source_of_table(table: Table) -> Source:
    def classes(split: str | None) -> tuple[str, ...]:
        return tuple(sorted({r.label for r in table.rows if split is None or r.split == split}))

    what = (table.name, table.base, table.splits, table.read, classes, "split")
    return Source(*what, notes=table.notes, doubt=table.doubt)


def _source_of_folders(root: Path, known: Collection[str]) -> Source:
    refuse_unclear_splits(root, known)
    splits = split_folders(root)

    def read(split: str | None, class_names: Names) -> Images:
        # A test folder next to class folders is a split, not a class, and is never trained on.
        if split is None:
            return read_classes(root, class_names=class_names, but=splits.values())
        return read_classes(splits[split], class_names=class_names)

    def classes(split: str | None) -> tuple[str, ...]:
        if split is None:
            return tuple(sorted(class_folders(root, but=splits.values())))
        return tuple(sorted(class_folders(splits[split])))

    parents = tuple(splits.values()) if "train" in splits else (root, *splits.values())
    return Source(
        name=str(root),
        base=root,
        splits=tuple(splits),
        read=read,
        classes=classes,
        notes=unread_notes(root),
        parents=parents,
    )


def data_root(root: str, reporter: Reporter | None = None) -> Path:
    """Return the folder that ``data.root`` names; the demo set is drawn on first use.

    Raises:
        DataError: The folder is missing, or is a file.
        OutputError: The user's cache folder cannot be written.
    """
    if root == DEMO:
        try:
            return demo_root(reporter)
        except OSError as error:
            raise OutputError(
                f"the demo images cannot be drawn into the user's cache folder: {error}",
                kind="output.unwritable",
                to_do="set XDG_CACHE_HOME to a writable folder",
            ) from error
    folder = expand_user(root)
    if not exists(folder):
        hint = near(folder)
        if is_pattern(root):
            hint = "Patterns are not supported; give the folder that contains the class folders"
        raise DataError(
            "no such folder", kind="data.not_found", key="data.root", path=folder, to_do=hint
        )
    if not folder.is_dir():
        raise DataError(
            "is a file, but not a table",
            kind="data.not_a_folder",
            key="data.root",
            path=folder,
            to_do="give a folder of class folders, or a .csv or .tsv file",
        )
    return folder


def _skipped_notes(source: Source, *images: Images) -> tuple[str, ...]:
    places = [path for part in images for path in part.skipped if not is_other_photo(path)]
    skipped = [path for path in places if not (is_of_system(path.name) or _is_loose(path))]
    notes = system_note(
        source.name, [path for path in places if is_of_system(path.name)], source.base
    )
    if skipped:
        notes += (
            f"{source.name}: skipped {len(skipped):,} that are not images: "
            f"{shown_few(skipped, source.base)}",
        )
    return notes


def _is_loose(path: Path) -> bool:
    """Return whether a skipped path is a photo; inside of a class folder, none is skipped."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _loose_warnings(images: Images) -> list[str]:
    """Return a warning for each folder of classes that directly contains photos."""
    counts = Counter(path.parent for path in images.skipped if _is_loose(path))
    return [
        f"{shown(folder)} directly contains {count:,} photo{'' if count == 1 else 's'} without a "
        "class, which training ignores; move them into class folders, or elsewhere"
        for folder, count in counts.items()
    ]


def _warnings(source: Source, *images: Images) -> tuple[str, ...]:
    """Return warnings on probable mistakes: unread photos, and parents read as classes."""
    others = other_photos(path for part in images for path in part.skipped)
    links = [path for part in images for path in part.links]
    misnamed = [path for part in images for path in part.misnamed]
    said = [*passed_over(links, misnamed), *([others] if others else [])]
    said += [what for part in images for what in _loose_warnings(part)]
    said += shared_files(*images) if source.parts == "folder" else []
    said += [source.doubt.text] if source.doubt else []
    warnings = [f"{source.name}: {what}" for what in said]
    if source.parts == "folder" and (doubt := doubtful_layout(source.base)):
        warnings.append(doubt.text)
    return tuple(warnings)
