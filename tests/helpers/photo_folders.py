"""Folders of tiny photos, and what is found in them; shared by the tests of ``data.sources``."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.config.schema import DataConfig
from finetune.core.errors import DataError
from finetune.data.images import Images, TrainVal
from finetune.data.sources.open import find_split, find_train_val
from helpers.messages import check_error

E_ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}"
E_ACUTE_NFD = unicodedata.normalize("NFD", E_ACUTE)


def png() -> bytes:
    """A whole image of four pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def put(root: Path, *names: str) -> Path:
    """Make these files below ``root``: pictures, or text where the name says so."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if path.suffix == ".txt" else PNG)
    return root


def pictures(*folders: str, count: int = 5) -> list[str]:
    """Names of ``count`` pictures in each folder."""
    return [f"{folder}/{index}.png" for folder in folders for index in range(count)]


def find(root: Path | str, *, seed: int = 0, **options: Any) -> TrainVal:
    """What training would read with these options of the section ``data``."""
    config = DataConfig.model_validate({"root": str(root), **options})
    return find_train_val(config, seed=seed)


def split_of(root: Path, split: str, *, data: Path | None = None) -> Images:
    """What ``eval --split`` would read for a network of cats and dogs."""
    return find_split(
        DataConfig(root=str(root)),
        split,
        class_names=("cats", "dogs"),
        seed=0,
        root=None if data is None else str(data),
    )


def refusal(root: Path | str, **options: Any) -> DataError:
    """The error with which training is refused, worded as in the golden file."""
    with pytest.raises(DataError) as caught:
        find(root, **options)
    check_error(caught.value)
    return caught.value


def file_names(images: Images) -> list[str]:
    """The images' file names without their folders."""
    return [path.name for path in images.paths]
