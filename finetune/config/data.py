"""Config section ``data``: the images and how they are split, checked and balanced."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from finetune.config.base import MOST, InvalidError, LocalPath, NoEffectError, Section, Text

DEMO = "demo"
TORCHVISION = "torchvision:"
TABLE_SUFFIXES = (".csv", ".tsv")
TABLE_COLUMNS = ("path_column", "label_column", "split_column", "group_column")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

WHITE_LEVELS = tuple(2**bits - 1 for bits in range(8, 17))
"""Maximum pixel values of images with 8 to 16 bits per channel."""
FULL_RANGE = WHITE_LEVELS[-1]

Fit = Literal["crop", "pad", "stretch"]
"""Methods to fit a photo into a square."""


def is_table(root: str) -> bool:
    """Whether ``data.root`` names a table, by its suffix."""
    return root.lower().endswith(TABLE_SUFFIXES)


def worker_count(value: Any) -> Any:
    """Return ``value`` if it is a number of workers, or auto.

    Raises:
        InvalidError: It is neither.
    """
    if value == "auto" or (type(value) is int and 0 <= value <= 64):
        return value
    raise InvalidError(f"must be auto or a whole number from 0 to 64, not {value!r}")


def _delimiter(value: Any) -> Any:
    words = {character: word for word, character in DELIMITERS.items()}
    if value in ("auto", None):
        return None
    if isinstance(value, str) and value in {*DELIMITERS, *words}:
        return words.get(value, value)
    raise InvalidError(f"must be auto, {', '.join(DELIMITERS)} or the character, not {value!r}")


class TableConfig(Section):
    """Options for reading a table."""

    delimiter: Annotated[str | None, BeforeValidator(_delimiter)] = None
    """Column delimiter: comma, semicolon, tab or pipe; auto, the default, detects it from the first
    line and is stored as None."""
    folder: Text | None = None
    """Folder that image paths are relative to, itself relative to the table's folder, which is the
    default."""
    suffix: Text | None = None
    """Suffix added to paths without it, such as .jpg if the column contains ids."""


def white_level(value: Any) -> Any:
    """Return ``value`` if it is one of `WHITE_LEVELS`, or auto.

    Raises:
        InvalidError: It is neither.
    """
    if value == "auto" or (type(value) is int and value in WHITE_LEVELS):
        return value
    listed = ", ".join(map(str, WHITE_LEVELS))
    bits = type(value) is int and 8 <= value <= 16
    raise InvalidError(
        f"must be auto or the maximum pixel value of 8 to 16 bits ({listed}), not {value!r}",
        to_do=f"for {value} bits it is {2**value - 1}" if bits else "",
    )


class DataConfig(Section):
    """Images, splits, checks and batches."""

    root: LocalPath
    """Data source: a folder of class folders, or of train/ and val/ folders that contain them; a
    .csv or .tsv file; torchvision:NAME; or demo."""
    folder: LocalPath | None = None
    """Folder of the data set (torchvision:NAME only); default: the user's cache folder."""
    download: bool | None = None
    """Whether to download a missing data set (torchvision:NAME only)."""
    path_column: Text | None = None
    """Column of image paths in a table (default: path); paths are relative to the table."""
    label_column: Text | None = None
    """Column of class names in a table (default: label)."""
    split_column: Text | None = None
    """Column of splits in a table (train, val or test, or a flag such as is_valid); default: split,
    or flags with known names, if the table has such columns."""
    group_column: Text | None = None
    """Column of groups in a table (default: group, if the table has it); images of one group are
    held out together."""
    table: TableConfig = Field(default_factory=TableConfig)
    """Options for reading a table."""
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of the training images held out if there is no val split; 0 trains on all of them,
    without validation."""
    group_pattern: Text | None = None
    """Regular expression searched in the path below root; its first group, or else the whole match,
    is the image's group. Images of one group are held out together."""
    corrections: LocalPath | None = None
    """Table (.csv) of corrected labels with the columns path, action (keep, relabel or drop) and
    label, as the page of `finetune suspects` saves it; paths are relative to the data. Applied when
    the images are listed; no file is changed."""
    on_unreadable: Literal["fail", "skip"] = "fail"
    """Handling of files that cannot be decoded; skip leaves them out and lists them in the run
    directory."""
    balance: Literal["none", "weights", "sampler"] = "none"
    """Class balancing; weights: class weights in the loss, sampler: all classes are drawn equally
    often."""
    fit: Fit = "crop"
    """Method to fit a photo into a square: crop takes the center, pad adds bars around the whole
    photo, stretch distorts it. Random crops are drawn only with crop."""
    levels: Annotated[int | Literal["auto"], BeforeValidator(white_level)] = "auto"
    """Maximum pixel value (white) of images with more than 8 bits per channel, such as 4095 for 12
    bits in 16-bit files. auto: 65535, or less if sampled images stay below an eighth of that."""
    batch_size: int = Field(default=32, ge=1, le=MOST)
    """Number of images per batch, in training and in evaluation."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(worker_count)] = "auto"
    """Number of processes that decode images; auto depends on the amount of data."""

    @field_validator("group_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            with warnings.catch_warnings():  # FutureWarning about syntax that may change
                warnings.simplefilter("ignore")
                re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            # What Python says of the depth depends on where it noticed.
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise InvalidError(f"{pattern!r} is not a regular expression: {why}") from None
        return pattern

    @model_validator(mode="after")
    def _options_take_effect(self) -> DataConfig:
        if not self.root.startswith(TORCHVISION):
            for key in ("folder", "download"):
                if getattr(self, key):
                    raise NoEffectError(key, f" unless root is {TORCHVISION}NAME")
        if not is_table(self.root):
            given = [key for key in TABLE_COLUMNS if getattr(self, key)]
            given += [f"table.{key}" for key in self.table.model_dump(exclude_defaults=True)]
            for key in given:
                raise NoEffectError(key, " unless root is a .csv or .tsv file")
        if self.group_pattern and self.group_column:
            raise InvalidError(
                "cannot be combined with group_column",
                key="group_pattern",
                to_do="remove one of them",
                kind="config.conflict",
            )
        return self
