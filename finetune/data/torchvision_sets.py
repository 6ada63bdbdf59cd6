"""torchvision's own datasets as a table of paths, labels and official splits.

Those whose images are files are read where they lie; small arrays of pixels are written out as
PNG files once. None of it unpickles anything, so CIFAR, which is stored as pickles, is refused.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

from finetune.config_data import TORCHVISION, DataConfig
from finetune.data.table import Row, Table
from finetune.data.torchvision_arrays import ARRAYS, read_arrays
from finetune.errors import DataError, did_you_mean
from finetune.files import expand_user, user_cache
from finetune.progress import Progress

_Asked = dict[str | None, dict[str, str]]
_TRAIN_TEST: _Asked = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: _Asked = {**_TRAIN_TEST, "val": {"split": "val"}}
_WHOLE: _Asked = {None: {}}

# Our splits, and how torchvision's class is asked for each.
FILES: dict[str, _Asked] = {
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": {**_THREE, "val": {"split": "valid"}},
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "RenderedSST2": _THREE,
    "StanfordCars": _TRAIN_TEST,
    "SUN397": _WHOLE,
}
_PICKLED = ("CIFAR10", "CIFAR100")


def read_torchvision(config: DataConfig, progress: Progress | None = None) -> Table:
    """The dataset that ``data.root: torchvision:NAME`` names.

    Raises:
        DataError: no such dataset, one that is not supported, or it is not there.
    """
    name = config.root.removeprefix(TORCHVISION)
    _check_name(name)
    try:
        folder = expand_user(config.folder) if config.folder else default_folder()
    except OSError as error:
        raise DataError(
            f"data.root: torchvision:{name} has no folder: {error.strerror}; name one with "
            "data.folder"
        ) from error
    with _as_data_error(name, folder, bool(config.download)):
        if name in ARRAYS:
            return read_arrays(name, folder, download=bool(config.download), progress=progress)
        return _read_files(name, folder, download=bool(config.download))


def default_folder() -> Path:
    """Where torchvision's datasets lie unless ``data.folder`` says otherwise."""
    return user_cache() / "torchvision"


def _check_name(name: str) -> None:
    known = sorted([*FILES, *ARRAYS])
    if name in _PICKLED:
        raise DataError(
            f"data.root: torchvision:{name} is stored as pickles, which run code when they are "
            "read and which finetune never opens. Save its images as class folders, or as files "
            "and a table, and give that as data.root."
        )
    if name not in known:
        raise DataError(
            f"data.root: torchvision:{name} is not known here.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}."
        )


@contextlib.contextmanager
def _as_data_error(name: str, folder: Path, download: bool) -> Iterator[None]:
    """torchvision's many ways to fail, as one; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, RuntimeError, ValueError, KeyError, URLError) as error:
        if not download and ("not found" in str(error) or isinstance(error, FileNotFoundError)):
            raise DataError(
                f"data.root: torchvision:{name} is not in {folder}; set data.download: true, or "
                f"data.folder to the folder that torchvision keeps it in ({error})"
            ) from error
        what = "downloaded to" if isinstance(error, URLError) else "read from"
        raise DataError(
            f"data.root: torchvision:{name} cannot be {what} {folder}: {error}"
        ) from error


def _read_files(name: str, folder: Path, *, download: bool) -> Table:
    from torchvision import datasets

    rows: list[Row] = []
    names: list[str] = []
    for split, options in FILES[name].items():
        dataset = getattr(datasets, name)(str(folder), download=download, **options)
        pairs = [(str(path), int(label)) for path, label in _pairs(dataset)]
        names = _class_names(dataset, 1 + max(label for _, label in pairs))
        # torchvision walks some folders in the order of the disk.
        rows += [Row(path, names[label], split, None) for path, label in sorted(pairs)]
    return Table(f"{TORCHVISION}{name}", folder, tuple(rows), tuple(names))


def _pairs(dataset: Any) -> Iterable[tuple[Any, Any]]:
    """Path and label of every image, from wherever the class keeps them."""
    for attribute in ("_samples", "samples"):
        if hasattr(dataset, attribute):
            return list(getattr(dataset, attribute))
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return zip(getattr(dataset, attribute), dataset._labels, strict=True)
    root, places = Path(dataset.root), zip(dataset.y, dataset.index, strict=True)
    if type(dataset).__name__ == "Caltech101":
        folder = root / "101_ObjectCategories"
        return [(folder / dataset.categories[y] / f"image_{i:04d}.jpg", y) for y, i in places]
    folder = root / "256_ObjectCategories"
    return [(folder / dataset.categories[y] / f"{y + 1:03d}_{i:04d}.jpg", y) for y, i in places]


def _class_names(dataset: Any, count: int) -> list[str]:
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if names:
            # Imagenette gives every class several names.
            return [name if isinstance(name, str) else name[0] for name in names]
    return [f"{label:02d}" for label in range(count)]
