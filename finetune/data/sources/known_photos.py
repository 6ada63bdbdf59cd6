"""Class and split of photos that are given by their paths."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from finetune.config.data import DataConfig
from finetune.data.images import Images
from finetune.data.sources.open import open_source, read_train_val

UNKNOWN = ""
"""Class or split of a photo where it is not known."""

_MOST_FOLDERS = 2**16


class KnownPhotos:
    """Classes and splits of photos.

    Args:
        class_names: Known classes.
        splits: Images of each split by its name.
    """

    def __init__(self, class_names: Collection[str], splits: Mapping[str, Images]) -> None:
        self._class_names = frozenset(class_names)
        self._found = {
            _place(path): (images.class_names[label], split)
            for split, images in splits.items()
            for path, label in zip(images.paths, images.labels, strict=True)
        }

    def find(self, path: str) -> tuple[str, str]:
        """Return the class and the split of a photo, each `UNKNOWN` if it is not known.

        A photo that is in no split is of the class that its folder is named after.
        """
        folder = Path(path).parent.name
        by_folder = folder if folder in self._class_names else UNKNOWN
        return self._found.get(_place(path), (by_folder, UNKNOWN))


def find_splits(
    config: DataConfig, *, seed: int, class_names: tuple[str, ...] | None = None
) -> dict[str, Images]:
    """Return the images of all splits of a config's data: train, val and, if there is one, test.

    Args:
        class_names: Class of each label; by default the class names of the train split.

    Raises:
        DataError: As in `finetune.data.sources.open.find_train_val`.
        OutputError: The user's cache folder cannot be written.
    """
    source = open_source(config, known=class_names or ())
    found = read_train_val(source, config, seed=seed, class_names=class_names)
    splits = {"train": found.train, "val": found.val}
    if "test" in source.splits:
        splits["test"] = source.corrected("test", found.train.class_names)
    return splits


def _place(path: str | os.PathLike[str]) -> str:
    """Return the path with the links in its folder resolved."""
    folder, name = os.path.split(path)
    return os.path.join(_resolved(os.path.abspath(folder)), name)  # noqa: PTH100, PTH118


@lru_cache(maxsize=_MOST_FOLDERS)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)
