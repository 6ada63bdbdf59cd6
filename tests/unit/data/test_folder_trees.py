"""Tests with generated folder trees: a label is the name of the class folder."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from helpers.counting import Count, times

from finetune.config.data import DataConfig
from finetune.core.errors import DataError
from finetune.data.checks.survey import survey
from finetune.data.images import Images
from finetune.data.sources.open import find_known, find_train_val

TREES = times("TREES", 60)

CLASSES = (
    *("cat", "dog", "Dog", "emu", "gnu", "a b", "10", "9", "cäfé", "cäfé", "ﬁsh", "fish"),
    *("日本", "😀", "train cars", "n01440764", "_x", "-y", "Z", "z.d", "class.jpg"),
)
ODD = (
    ".hidden",
    ".ipynb_checkpoints",
    "__MACOSX",
    "new\nline",
    "\x1b[31m",
    "\udcff",
    "test",
    "val",
)
FILES = ("0.jpg", "1.JPG", "2.png", "ä.jpeg", "3.tif", "4 5.webp", "deep/6.bmp", "deep/er/7.gif")
STRAY = (".DS_Store", "Thumbs.db", "notes.txt", ".0.jpg", "readme", "x.jpg.part", "deep/.y.png")
SPLIT_NAMES = {
    "train": ("train", "Train", "training", "TRAIN"),
    "val": ("val", "valid", "Validation", "dev"),
    "test": ("test", "TEST", "testing"),
}


def plant(root: Path, rng: random.Random) -> None:
    """A tree as such folders turn up, sound or not."""
    names = rng.sample(CLASSES, rng.randint(1, 6))
    # Two that differ only by case or Unicode form are refused, and would hide the rest of a tree.
    names = list({unicodedata.normalize("NFC", name).lower(): name for name in names}.values())
    layout = rng.choice([("train", "val"), ("train", "val", "test"), ("train",), (), ("val",)])
    folders = [root / rng.choice(SPLIT_NAMES[split]) for split in layout] or [root]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _changed(names, rng) if folder is not folders[0] else names:
            _fill(folder / name, rng)
        if rng.random() < 0.3:
            (folder / rng.choice(("loose.jpg", "readme.txt"))).write_bytes(b"x")
        if rng.random() < 0.3:
            _fill(folder / rng.choice(ODD), rng)
    if rng.random() < 0.15:
        _fill(root / rng.choice(CLASSES), rng)  # beside the splits
    if rng.random() < 0.1:
        (folders[-1] / "linked").symlink_to(folders[0] / names[0])


def _changed(names: list[str], rng: random.Random) -> list[str]:
    """Another split's classes: mostly the same, sometimes fewer, more, or one by another name."""
    changed = list(names)
    what = rng.random()
    if what < 0.2 and len(changed) > 1:
        changed.remove(rng.choice(changed))
    elif what < 0.3:
        changed.append(rng.choice(CLASSES))
    elif what < 0.4:
        changed[rng.randrange(len(changed))] += "s"
    elif what < 0.5:
        form = rng.choice(("NFC", "NFD"))
        changed = [unicodedata.normalize(form, name) for name in changed]
    return changed


def _fill(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.04:
        return  # a class without images
    for name in [*rng.sample(FILES, rng.randint(1, 4)), *rng.sample(STRAY, rng.randint(0, 2))]:
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")


def folder_of(path: Path, root: Path) -> str:
    """Return the class folder of an image: below a split folder, or below the root."""
    parts = path.relative_to(root).parts
    first = parts[0].lower()
    is_split = any(first in map(str.lower, names) for names in SPLIT_NAMES.values())
    name = parts[1] if is_split else parts[0]
    return unicodedata.normalize("NFC", name)


def shifted(images: Images, root: Path) -> list[Path]:
    """Images whose label is another class than the folder that they lie in."""
    names = images.class_names
    assert len(images.labels) == len(images.paths)
    return [
        path
        for path, label in zip(images.paths, images.labels, strict=True)
        if names[label] != folder_of(path, root)
    ]


def read_every_way(root: Path, rng: random.Random) -> Iterator[Images]:
    """What training, evaluation, other data and check-data make of a tree."""
    config = DataConfig(root=str(root))
    found = find_train_val(config, seed=3)
    yield found.train
    yield found.val
    assert found.train.class_names == found.val.class_names
    known = list(found.train.class_names)
    # As from a checkpoint of other data: in another order, with one more or one fewer.
    rng.shuffle(known)
    known.insert(rng.randrange(len(known)), "of another time")
    for split in ("train", "val", "test"):
        for names, ignore in ((known, False), (known[1:], True)):
            for other in (None, str(root)):
                try:
                    images, _, _ = find_known(
                        config,
                        split,
                        class_names=names,
                        seed=3,
                        root=other,
                        ignore_unknown=ignore,
                    )
                except DataError:
                    continue
                assert images.class_names == tuple(names)
                yield images


def test_no_folder_tree_shifts_a_label(tmp_path: Path, count: Count) -> None:
    lost: list[str] = []
    read = refused = 0
    for number in range(TREES):
        rng = random.Random(number)
        root = tmp_path / str(number)
        root.mkdir()
        plant(root, rng)
        try:
            for images in read_every_way(root, rng):
                wrong = shifted(images, root)
                if wrong:
                    lost.append(f"tree {number}: {wrong[0]}")
            read += 1
        except DataError as error:
            refused += 1
            if "\n" in str(error) or not str(error).isprintable():
                lost.append(f"tree {number}: {error}")
        try:
            seen = survey(DataConfig(root=str(root)), seed=3)
        except DataError:
            continue
        named = zip(seen.paths, seen.class_of, strict=True)
        if any(seen.classes[at] != folder_of(Path(p), root) for p, at in named):
            lost.append(f"tree {number}: check-data")
    count("folder-trees", tried=TREES, held=TREES - len({text.split(":")[0] for text in lost}))
    assert not lost
    assert read > TREES / 5, (read, refused)  # else it would say little
    assert refused > TREES / 10, (read, refused)
