"""Demo image set, drawn atomically into the user's cache folder on first use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from finetune.core.files import remove_stale, user_cache
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.sources.demo_drawing import FIGURES, draw_picture

TRAIN_PER_CLASS = 40
VAL_PER_CLASS = 25

# Part of the folder name. Increase it when the images change, since an existing set is not redrawn.
VERSION = 1


def demo_root(reporter: Reporter | None = None) -> Path:
    """Return the folder of the demo set, with ``train/<class>/`` and ``val/<class>/``.

    The first call draws the set into the user's cache folder, which takes a few seconds.

    Raises:
        OSError: The cache folder cannot be written.
    """
    root = user_cache() / f"demo-{VERSION}"
    if not _is_whole(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(root.parent, f"{root.name}.*.tmp")
        _draw_and_rename(root, reporter)
    return root


def draw_demo_set(
    folder: Path,
    *,
    seed: int = 0,
    train_per_class: int = TRAIN_PER_CLASS,
    val_per_class: int = VAL_PER_CLASS,
    test_per_class: int = 0,
    reporter: Reporter | None = None,
) -> None:
    """Draw the set into an empty folder; same seed and Pillow version give the same bytes."""
    places = list(_image_paths(train_per_class, val_per_class, test_per_class))
    tracked = (reporter or SilentReporter()).track(places, "draw demo images", total=len(places))
    for relative_path in tracked:
        path = folder / relative_path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each image depends only on its own path, not on the images drawn before it.
        rng = Random(f"{seed}/{relative_path.as_posix()}")
        draw_picture(relative_path.parts[1], rng).save(path, compress_level=1)


def _image_paths(
    train_per_class: int, val_per_class: int, test_per_class: int = 0
) -> Iterator[Path]:
    counts = (("train", train_per_class), ("val", val_per_class), ("test", test_per_class))
    for split, count in counts:
        for class_name in FIGURES:
            for index in range(count):
                yield Path(split, class_name, f"{index:03d}.png")


def _is_whole(root: Path) -> bool:
    # A cache cleaner may have removed individual files.
    return all((root / path).is_file() for path in _image_paths(TRAIN_PER_CLASS, VAL_PER_CLASS))


def _draw_and_rename(root: Path, reporter: Reporter | None) -> None:
    """Draw into a temporary folder and rename it to ``root``, so that ``root`` is complete."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        drawing = scratch / "drawing"
        drawing.mkdir()
        draw_demo_set(
            drawing,
            train_per_class=TRAIN_PER_CLASS,
            val_per_class=VAL_PER_CLASS,
            reporter=reporter,
        )
        if root.is_dir() and not _is_whole(root):
            root.rename(scratch / "incomplete")
        try:
            drawing.rename(root)
        except OSError:
            # Another process was faster; its set is identical.
            if not _is_whole(root):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
