"""Survey of all splits of a dataset; problems are recorded instead of raised where possible."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config.data import TORCHVISION, DataConfig
from finetune.core.errors import DataError
from finetune.core.reporter import Reporter
from finetune.data.images import SPLITS, alike
from finetune.data.sources.corrections import DROP, Corrections
from finetune.data.sources.folders import (
    files_of_class,
    loose_images,
    named_folders,
    split_folders,
    system_folders,
)
from finetune.data.sources.layout_checks import Doubt, doubtful_layout
from finetune.data.sources.open import Source, open_source, read_train_val
from finetune.data.splits.holdout import choose_held_out, groups_of, keys_of

WHOLE = "all"
"""Name of the only split of a dataset without splits, if nothing is held out."""


@dataclass
class Survey:
    """All images with split and class, and everything else that was found.

    Attributes:
        split_of: Index into ``splits`` for each image.
        class_of: Index into ``classes`` for each image.
        splits: Names of the splits.
        classes: Names of the classes of all splits.
        system: Folders created by the system or a tool.
        alike: Classes, or their folders, whose names differ only by case, spaces or Unicode form.
        empty: Class folders without images.
        problem: Reason why nothing can be held out, or why groups cannot be kept together.
        refusal: Reason why training rejects the data, independent of other findings.
        doubt: Reason why the supposed classes may not be classes.
    """

    name: str
    base: Path
    paths: list[str] = field(default_factory=list)
    split_of: array[int] = field(default_factory=lambda: array("b"))
    class_of: array[int] = field(default_factory=lambda: array("i"))
    groups: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    held_out: bool = False
    skipped: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    alike: list[tuple[str, ...]] = field(default_factory=list)
    empty: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None
    refusal: str | None = None
    doubt: Doubt | None = None
    notes: tuple[str, ...] = ()

    def home_of(self, at: int) -> int:
        """Return the split of an image in the data itself, before training holds any out."""
        split = self.split_of[at]
        drawn = self.held_out and self.splits[split] == "val"
        return split - 1 if drawn else split


def survey(config: DataConfig, *, seed: int, reporter: Reporter | None = None) -> Survey:
    """List everything that ``data.root`` names.

    Raises:
        DataError: There are no images, or the source itself cannot be read.
    """
    source = open_source(config, reporter)
    found = Survey(source.name, source.base, notes=source.notes, doubt=source.doubt)
    if source.parts == "folder":
        _walk(source, found)
        _order_classes(found)
    else:
        _read(source, found)
        if not config.root.startswith(TORCHVISION):
            found.alike = alike(found.classes)
    if not found.paths:
        # Training's own error is the most specific one.
        source.read("train" if "train" in source.splits else None, None)
        raise DataError("contains no images", kind="data.no_images", path=source.name)
    try:
        read_train_val(source, config, seed=seed)
    except DataError as error:
        found.refusal = str(error)
    if source.parts == "folder":
        found.doubt = doubtful_layout(source.base)
    _hold_out(found, config, seed)
    if source.corrections is not None:
        _correct(found, source.corrections)
    return found


def _walk(source: Source, found: Survey) -> None:
    folders = split_folders(source.base)
    places: list[tuple[str, Path, tuple[Path, ...]]] = [
        (split, folders[split], ()) for split in SPLITS if split in folders
    ]
    if "train" not in folders and "val" not in folders:
        places.insert(0, (WHOLE, source.base, tuple(folders.values())))
    for split, folder, but in places:
        found.splits.append(split)
        number = len(found.splits) - 1
        found.skipped += loose_images(folder)
        found.hidden += sorted(str(p) for p in folder.iterdir() if p.name.startswith("."))
        found.system += system_folders(folder)
        classes = sorted(named_folders(folder, but=but))
        for group in alike(place.name for _, place in classes):
            found.alike.append(tuple(f"{folder / name}" for name in group))
        for name, place in classes:
            files = files_of_class(place)
            found.skipped += files.skipped
            found.hidden += files.hidden
            found.misnamed += files.misnamed
            found.links += files.links
            found.system += files.system
            if not files.images:
                found.empty.append((split, name))
            if name not in found.classes:
                found.classes.append(name)
            found.paths += files.images
            found.split_of.extend([number] * len(files.images))
            found.class_of.extend([found.classes.index(name)] * len(files.images))


def _read(source: Source, found: Survey) -> None:
    """Add the images of each split of a table or a torchvision dataset."""
    whole = source.read(None, None)
    found.classes = list(whole.class_names)
    for split in source.splits or (None,):
        images = source.read(split, whole.class_names)
        found.splits.append(split or WHOLE)
        found.paths += map(str, images.paths)
        found.split_of.extend([len(found.splits) - 1] * len(images))
        found.class_of.extend(images.labels)
        found.groups += images.groups or [f"\0{path}" for path in images.paths]
    if not whole.groups:
        found.groups = []


def _order_classes(found: Survey) -> None:
    """Sort the classes by code point, as training does, instead of by first occurrence."""
    order = sorted(found.classes)
    new = {name: number for number, name in enumerate(order)}
    renumbered = [new[name] for name in found.classes]
    found.classes = order
    found.class_of = array("i", (renumbered[label] for label in found.class_of))


def _correct(found: Survey, corrections: Corrections) -> None:
    """Apply corrections, whose mistakes the refusal names."""
    decided = corrections.of(found.paths)
    for at, one in enumerate(decided):
        if one is not None and one.label in found.classes:
            found.class_of[at] = found.classes.index(one.label)
    kept = [at for at, one in enumerate(decided) if one is None or one.action != DROP]
    found.paths = [found.paths[at] for at in kept]
    found.split_of = array("b", (found.split_of[at] for at in kept))
    found.class_of = array("i", (found.class_of[at] for at in kept))
    found.groups = [found.groups[at] for at in kept] if found.groups else []


def _hold_out(found: Survey, config: DataConfig, seed: int) -> None:
    """Draw the validation split that training would hold out, so that it is checked too."""
    training = "train" if "train" in found.splits else WHOLE
    try:
        if config.group_pattern:
            groups, note = groups_of(
                keys_of(found.paths, found.base), config.group_pattern, base=found.base
            )
            found.groups = list(groups)
            found.notes += (note,)
        if "val" in found.splits or training not in found.splits or not config.val_fraction:
            return
        number = found.splits.index(training)
        at = [i for i, split in enumerate(found.split_of) if split == number]
        _, held = choose_held_out(
            [found.class_of[i] for i in at],
            keys_of((found.paths[i] for i in at), found.base),
            [found.groups[i] for i in at] if found.groups else [],
            config.val_fraction,
            seed=seed,
            class_names=found.classes,
            where=found.name,
        )
    except DataError as error:
        found.problem = str(error)
        return
    found.held_out = True
    found.splits[number] = "train"
    found.splits.insert(number + 1, "val")
    for i, split in enumerate(found.split_of):
        if split > number:
            found.split_of[i] += 1
    for i in held:
        found.split_of[at[i]] = number + 1
