"""The config's section ``data``: which images, how they are split, checked and balanced."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from finetune.config_section import MOST, LocalPath, Section, Text

DEMO = "demo"
TORCHVISION = "torchvision:"
TABLE_SUFFIXES = (".csv", ".tsv")
TABLE_COLUMNS = ("path_column", "label_column", "split_column", "group_column")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

WHITE_LEVELS = tuple(2**bits - 1 for bits in range(8, 17))
"""The greatest levels of 8 to 16 bits."""
FULL_RANGE = WHITE_LEVELS[-1]

Fit = Literal["crop", "pad", "stretch"]
"""How a photo becomes a square."""


def is_table(root: str) -> bool:
    """Whether ``data.root`` is worded as a table."""
    return root.lower().endswith(TABLE_SUFFIXES)


def _workers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 <= value <= 64):
        return value
    raise ValueError(f"must be auto or a whole number from 0 to 64, not {value!r}")


def _delimiter(value: Any) -> Any:
    words = {character: word for word, character in DELIMITERS.items()}
    if isinstance(value, str) and value in {"auto", *DELIMITERS, *words}:
        return words.get(value, value)
    raise ValueError(f"must be auto, {', '.join(DELIMITERS)} or the character, not {value!r}")


class TableConfig(Section):
    """How a table is read."""

    delimiter: Annotated[Any, BeforeValidator(_delimiter)] = "auto"
    """What separates the columns: comma, semicolon, tab or pipe; auto goes by the first line."""
    folder: Text | None = None
    """Folder that paths are relative to, itself relative to the table; default: the table's own."""
    suffix: Text | None = None
    """Appended to each path that does not end in it, such as .jpg where a column holds ids."""


def _levels(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value in WHITE_LEVELS):
        return value
    listed = ", ".join(map(str, WHITE_LEVELS))
    bits = type(value) is int and 8 <= value <= 16
    meant = f"; {value} bits have {2**value - 1}" if bits else ""
    raise ValueError(
        f"must be auto or the greatest level of 8 to 16 bits ({listed}), not {value!r}{meant}"
    )


class DataConfig(Section):
    """Which images, in which portions."""

    root: LocalPath
    """Class folders, or train/ and val/ folders that hold them; a .csv or .tsv file;
    torchvision:NAME; or demo."""
    folder: LocalPath | None = None
    """torchvision:NAME only: where it lies; default: the user's cache folder."""
    download: bool | None = None
    """torchvision:NAME only: true downloads it where it is absent."""
    path_column: Text | None = None
    """Of a table, default path; paths are relative to the file."""
    label_column: Text | None = None
    """Of a table, default label: the class."""
    split_column: Text | None = None
    """Of a table: train, val or test, or a flag such as is_valid; default: split, or flags by their
    names, where there are such columns."""
    group_column: Text | None = None
    """Of a table: images of one group stay together when some are held out; default group, where
    there is such a column."""
    table: TableConfig = Field(default_factory=TableConfig)
    """How a table is read."""
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the training images held out where there is no val split; 0 trains on all of them,
    without validation."""
    group_pattern: Text | None = None
    """Regular expression over the path below root: its first group, or the whole match, names the
    group that an image stays with."""
    on_unreadable: Literal["fail", "skip"] = "fail"
    """skip leaves out files that cannot be decoded, and lists them in the run folder."""
    balance: Literal["none", "weights", "sampler"] = "none"
    """weights: rare classes weigh more in the loss; sampler: they are drawn as often as others."""
    fit: Fit = "crop"
    """How a photo becomes a square: crop takes its middle, pad shows all of it between bars,
    stretch distorts it. Random crops are drawn with crop alone."""
    levels: Annotated[Any, BeforeValidator(_levels)] = "auto"
    """Of images with more than 8 bits a channel: the level that is white, such as 4095 for 12 bits
    in 16-bit files. auto: 65535, or less where the images sampled stay below an eighth of that."""
    batch_size: int = Field(default=32, ge=1, le=MOST)
    """Images per optimizer step, and per forward pass of an evaluation."""
    workers: Annotated[Any, BeforeValidator(_workers)] = "auto"
    """Processes that decode images; auto chooses by the amount of data."""

    @field_validator("group_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            with warnings.catch_warnings():  # about what a later Python will read otherwise
                warnings.simplefilter("ignore")
                re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _options_take_effect(self) -> DataConfig:
        if not self.root.startswith(TORCHVISION):
            for key in ("folder", "download"):
                if getattr(self, key):
                    raise ValueError(f"{key}: has no effect unless root is {TORCHVISION}NAME")
        if not is_table(self.root):
            given = [key for key in TABLE_COLUMNS if getattr(self, key)]
            given += [f"table.{key}" for key in self.table.model_dump(exclude_defaults=True)]
            for key in given:
                raise ValueError(f"{key}: has no effect unless root is a .csv or .tsv file")
        if self.group_pattern and self.group_column:
            raise ValueError("group_pattern: give either it or group_column")
        return self
