"""torchvision datasets of pixel arrays, converted once to PNG files and a table."""

from __future__ import annotations

import csv
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.config.data import TORCHVISION, DataConfig
from finetune.core.errors import DataError, OutputError
from finetune.core.files import remove_stale, state_of, user_cache
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.sources.table import Table, read_table

# Arguments of the torchvision class for each split, and a pattern of the files that it reads.
_MNIST = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
ARRAYS: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "FashionMNIST": (_MNIST, "FashionMNIST/raw/*-ubyte"),
    "KMNIST": (_MNIST, "KMNIST/raw/*-ubyte"),
    "MNIST": (_MNIST, "MNIST/raw/*-ubyte"),
    "STL10": (_SPLIT, "stl10_binary/*"),
    "SVHN": (_SPLIT, "*_32x32.mat"),
}
_TABLE = "photos.csv"
_VERSION = 1


def read_arrays(
    name: str, folder: Path, *, download: bool, reporter: Reporter | None = None
) -> Table:
    """Return a dataset as PNG files in the user's cache folder, written on first use.

    Raises:
        OutputError: The files cannot be written.
    """
    if download or not _digest(name, folder):
        for split in ARRAYS[name][0]:
            _load(name, folder, split, download=download)
    home = user_cache() / "torchvision-png"
    target = home / f"{name}-{_digest(name, folder)}"
    try:
        table = _read(target)
    except DataError:  # missing, or a cache cleaner removed files
        try:
            _write(name, folder, target, reporter or SilentReporter())
        except OSError as error:
            raise OutputError(
                f"the images of {TORCHVISION}{name} cannot be written: {error.strerror or error}",
                kind="output.unwritable",
                path=target,
                to_do="set XDG_CACHE_HOME to a writable folder",
            ) from error
        table = _read(target)
    return replace(table, name=f"{TORCHVISION}{name}", classes=_class_names(name, table))


def _read(target: Path) -> Table:
    return read_table(DataConfig(root=str(target / _TABLE)))


def _digest(name: str, folder: Path) -> str:
    """Return a checksum of the state of the source files; empty if there are none."""
    digest = hashlib.sha256(f"{_VERSION} {folder.absolute()}".encode("utf-8", "surrogateescape"))
    files = sorted(folder.glob(ARRAYS[name][1]))
    for file in files:
        digest.update(f"\0{file.name} {state_of(file.stat())}".encode())
    return digest.hexdigest()[:16] if files else ""


def _load(name: str, folder: Path, split: str, *, download: bool) -> Any:
    from torchvision import datasets

    base = getattr(datasets, name)
    if hasattr(base, "_check_legacy_exist"):
        # MNIST would otherwise load a torch.save file if it finds one.
        base = type(name, (base,), {"_check_legacy_exist": lambda _: False})
    return base(str(folder), download=download, **ARRAYS[name][0][split])


def _class_names(name: str, table: Table) -> tuple[str, ...]:
    from torchvision import datasets

    names = getattr(getattr(datasets, name), "classes", None)
    return tuple(names) if names else tuple(sorted({row.label for row in table.rows}))


def _write(name: str, folder: Path, target: Path, reporter: Reporter) -> None:
    """Write to a temporary folder and rename it to ``target``, so that it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent, f"{name}-*.tmp")
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        with (new / _TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("path", "label", "split"))
            for split in ARRAYS[name][0]:
                table.writerows(
                    _save_split(_load(name, folder, split, download=False), split, new, reporter)
                )
        if target.is_dir():
            target.rename(scratch / "old")
        try:
            new.rename(target)
        except OSError:
            if not (target / _TABLE).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_split(
    dataset: Any, split: str, target: Path, reporter: Reporter
) -> Iterator[tuple[str, str, str]]:
    """Save every image, a thousand per folder, and yield its row."""
    names = getattr(dataset, "classes", None)
    order = reporter.track(range(len(dataset)), f"write {split} images", total=len(dataset))
    for index in order:
        image, label = dataset[index]
        assert isinstance(image, Image.Image)
        path = f"{split}/{index // 1000:03d}/{index:06d}.png"
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(target / path, compress_level=1)
        yield path, names[label] if names else str(label), split
