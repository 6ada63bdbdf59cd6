"""The demo image set: drawn into the user's cache folder on first use, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from finetune.data.demo_figures import FIGURES
from finetune.data.demo_pictures import draw_picture
from finetune.files import remove_stale, user_cache
from finetune.progress import Progress, Silent

TRAIN_PER_CLASS = 40
VAL_PER_CLASS = 25

# Part of the folder's name: raise it when the pictures change, for a drawn set is not redrawn.
VERSION = 1


def demo_root(progress: Progress | None = None) -> Path:
    """The folder of the demo set, holding ``train/<class>/`` and ``val/<class>/``.

    The first call draws it into the user's cache, which takes a few seconds.

    Raises:
        OSError: the cache cannot be written.
    """
    root = user_cache() / f"demo-{VERSION}"
    if not _is_whole(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(root.parent, f"{root.name}.*.tmp")
        _draw_and_rename(root, progress)
    return root


def draw_demo_set(
    folder: Path,
    *,
    seed: int = 0,
    train_per_class: int = TRAIN_PER_CLASS,
    val_per_class: int = VAL_PER_CLASS,
    progress: Progress | None = None,
) -> None:
    """Draw the set into an empty folder; the same bytes for the same seed and Pillow."""
    places = list(_image_paths(train_per_class, val_per_class))
    tracked = (progress or Silent()).track(places, "draw demo images", total=len(places))
    for relative_path in tracked:
        path = folder / relative_path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A picture depends on its own place alone, not on how many are drawn before it.
        rng = Random(f"{seed}/{relative_path.as_posix()}")
        draw_picture(relative_path.parts[1], rng).save(path, compress_level=1)


def _image_paths(train_per_class: int, val_per_class: int) -> Iterator[Path]:
    for split, count in (("train", train_per_class), ("val", val_per_class)):
        for class_name in FIGURES:
            for index in range(count):
                yield Path(split, class_name, f"{index:03d}.png")


def _is_whole(root: Path) -> bool:
    # A cleaner of caches may have taken single files since.
    return all((root / path).is_file() for path in _image_paths(TRAIN_PER_CLASS, VAL_PER_CLASS))


def _draw_and_rename(root: Path, progress: Progress | None) -> None:
    """Draw beside ``root`` and rename, so that ``root`` is whole from its first moment."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        drawing = scratch / "drawing"
        drawing.mkdir()
        draw_demo_set(
            drawing,
            train_per_class=TRAIN_PER_CLASS,
            val_per_class=VAL_PER_CLASS,
            progress=progress,
        )
        if root.is_dir() and not _is_whole(root):
            root.rename(scratch / "incomplete")
        try:
            drawing.rename(root)
        except OSError:
            # Another process was faster: its set is as good as ours.
            if not _is_whole(root):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
