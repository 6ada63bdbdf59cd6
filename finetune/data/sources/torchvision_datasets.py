"""torchvision datasets as a table of paths, labels and official splits.

Datasets of image files are read in their folder; small pixel arrays are converted once to PNG
files. Nothing is unpickled, so CIFAR, which is stored as pickles, is rejected.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

from finetune.config.data import TORCHVISION, DataConfig
from finetune.core.errors import DataError
from finetune.core.files import expand_user, user_cache
from finetune.core.reporter import Reporter
from finetune.core.text import did_you_mean
from finetune.data.sources.table import Row, Table
from finetune.data.sources.torchvision_arrays import ARRAYS, read_arrays

_Asked = dict[str | None, dict[str, str]]
_TRAIN_TEST: _Asked = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: _Asked = {**_TRAIN_TEST, "val": {"split": "val"}}
_WHOLE: _Asked = {None: {}}

# Splits, and the arguments of the torchvision class for each.
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


def read_torchvision(config: DataConfig, reporter: Reporter | None = None) -> Table:
    """Read the dataset that ``data.root: torchvision:NAME`` names.

    Raises:
        DataError: The dataset is unknown, not supported, or not in the folder.
    """
    name = config.root.removeprefix(TORCHVISION)
    _check_name(name)
    try:
        folder = expand_user(config.folder) if config.folder else default_folder()
    except OSError as error:
        raise DataError(
            f"no folder for the data set: {error.strerror}",
            kind="data.not_found",
            key="data.root",
            path=f"{TORCHVISION}{name}",
            to_do="set data.folder",
        ) from error
    with _as_data_error(name, folder, bool(config.download)):
        if name in ARRAYS:
            return read_arrays(name, folder, download=bool(config.download), reporter=reporter)
        return _read_files(name, folder, download=bool(config.download))


def default_folder() -> Path:
    """Return the default folder of torchvision datasets, used without ``data.folder``."""
    return user_cache() / "torchvision"


def _check_name(name: str) -> None:
    known = sorted([*FILES, *ARRAYS])
    if name in _PICKLED:
        raise DataError(
            "is stored as pickles, which can run code when they are read; finetune never reads "
            "pickles",
            kind="data.pickled",
            key="data.root",
            path=f"{TORCHVISION}{name}",
            to_do="save its images as class folders, or as files and a table, and set data.root "
            "to that",
        )
    if name not in known:
        raise DataError(
            "is not a supported torchvision data set",
            kind="data.unknown_dataset",
            key="data.root",
            path=f"{TORCHVISION}{name}",
            to_do=f"{did_you_mean(name, known)} Supported: {', '.join(known)}.",
        )


@contextlib.contextmanager
def _as_data_error(name: str, folder: Path, download: bool) -> Iterator[None]:
    """Convert torchvision's exceptions to DataError and redirect its output to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, RuntimeError, ValueError, KeyError, URLError) as error:
        if not download and ("not found" in str(error) or isinstance(error, FileNotFoundError)):
            raise DataError(
                f"is not in {folder} ({error})",
                kind="data.not_found",
                key="data.root",
                path=f"{TORCHVISION}{name}",
                to_do="set data.download: true, or set data.folder to the folder that contains it",
            ) from error
        what = "downloaded to" if isinstance(error, URLError) else "read from"
        raise DataError(
            f"cannot be {what} {folder}: {error}",
            kind="data.unreadable",
            key="data.root",
            path=f"{TORCHVISION}{name}",
        ) from error


def _read_files(name: str, folder: Path, *, download: bool) -> Table:
    from torchvision import datasets

    rows: list[Row] = []
    names: list[str] = []
    for split, options in FILES[name].items():
        dataset = getattr(datasets, name)(str(folder), download=download, **options)
        pairs = [(str(path), int(label)) for path, label in _pairs(dataset)]
        names = _class_names(dataset, 1 + max(label for _, label in pairs))
        # torchvision lists some folders in file system order.
        rows += [Row(path, names[label], split, None) for path, label in sorted(pairs)]
    return Table(f"{TORCHVISION}{name}", folder, tuple(rows), tuple(names))


def _pairs(dataset: Any) -> Iterable[tuple[Any, Any]]:
    """Return path and label of every image, from the attributes of the dataset class."""
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
            # In Imagenette, every class has several names.
            return [name if isinstance(name, str) else name[0] for name in names]
    return [f"{label:02d}" for label in range(count)]
