"""A CSV or TSV file of paths and labels, every problem in it named at once; imports no torch."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config_data import DataConfig
from finetune.data.images import (
    IMAGE_SUFFIXES,
    SPLITS,
    Images,
    near,
    refuse_unknown_classes,
    shown,
    split_named,
)
from finetune.errors import DataError, did_you_mean
from finetune.files import exists, expand_user, is_file

_MOST_SHOWN = 10


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    path: str
    label: str
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Table:
    """Images with their labels, and with splits where the data makes them.

    Attributes:
        classes: In their own order; None where they are ordered by code point.
    """

    name: str
    base: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that rows name, train first."""
        named = {row.split for row in self.rows}
        return tuple(split for split in SPLITS if split in named)

    def read(self, split: str | None, class_names: tuple[str, ...] | None) -> Images:
        """The images of a split, or all where ``split`` is None.

        Raises:
            DataError: fewer than two classes, or one that is unknown.
        """
        rows = [row for row in self.rows if row.split == split] if split else self.rows
        found = {row.label for row in rows}
        if class_names is not None:
            refuse_unknown_classes(sorted(found), class_names, lambda _: self.name)
        names = class_names or self._classes_of(found)
        if len(names) < 2:
            only = next(iter(found), None)
            raise DataError(
                f"{self.name}: {'no rows' if only is None else f'one class ({only})'}; "
                "a classifier needs two or more"
            )
        label_of = {name: label for label, name in enumerate(names)}
        grouped = any(row.group is not None for row in rows)
        return Images(
            paths=tuple(Path(row.path) for row in rows),
            labels=tuple(label_of[row.label] for row in rows),
            class_names=names,
            num_bytes=sum(_size(row.path) for row in rows),
            # A row without a group is one of its own; no group can have such a name.
            groups=tuple(row.group or f"\0{row.path}" for row in rows) if grouped else (),
        )

    def _classes_of(self, found: set[str]) -> tuple[str, ...]:
        if self.classes is None:
            return tuple(sorted(found))
        return tuple(name for name in self.classes if name in found)


class _Problems:
    """What is wrong with a table, the first few of it in words."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []
        self.count = 0

    def add(self, line: int, text: str) -> None:
        self.count += 1
        if self.count <= _MOST_SHOWN:
            self.texts.append(f"{self.name}:{line}: {text}")

    def refuse(self) -> None:
        if self.count == 1:
            raise DataError(self.texts[0])
        if self.count:
            more = self.count - len(self.texts)
            lines = [*self.texts, *([f"… and {more:,} more"] if more else [])]
            raise DataError(
                "\n".join([f"{self.name}: {self.count:,} problems", *(f"  {x}" for x in lines)])
            )


@dataclass(frozen=True)
class _Columns:
    """Where in a row each value stands."""

    count: int
    path: int
    label: int
    split: int | None
    group: int | None


def read_table(config: DataConfig) -> Table:
    """Read the table that ``data.root`` names.

    Raises:
        DataError: names every problem with its line.
    """
    file = expand_user(config.root)
    name = shown(file)
    records = _records(_text(file), name, "\t" if file.suffix.lower() == ".tsv" else ",")
    _, header = next(records, (1, None))
    if header is None:
        raise DataError(f"{name}: is empty; its first line must name the columns, as path,label")
    _refuse_other_encoding(name, 1, header)
    columns = _find_columns(name, header, config)
    problems = _Problems(name)
    rows: dict[str, tuple[int, Row]] = {}
    repeated = 0
    for line, fields in records:
        if len(fields) == columns.count:
            _refuse_other_encoding(name, line, [fields[columns.label]])
        row = _row(line, fields, columns, file.parent, problems)
        if row is None:
            continue
        before = rows.setdefault(row.path, (line, row))
        if before[0] != line:
            repeated += 1
            _compare(line, row, *before, problems)
    problems.refuse()
    notes = (f"{name}: {repeated:,} rows repeat an earlier one; each counts once",)
    return Table(
        name, file.parent, tuple(row for _, row in rows.values()), None, notes if repeated else ()
    )


def _text(file: Path) -> str:
    """The file as text; bytes that are not UTF-8 are kept, for a file name may hold them."""
    if exists(file) and not is_file(file):
        raise DataError(f"data.root: {file}: is no file that ends, but a pipe or a device")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"data.root: {file}: no such file.{near(file)}") from None
    except OSError as error:
        raise DataError(f"data.root: {file}: cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        raise DataError(f"{file}: is not a text file in UTF-8; save it as CSV in UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _records(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line that it begins on; a quoted field may span lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}:{line}: cannot be read as a table: {error}") from None


def _refuse_other_encoding(name: str, line: int, fields: Sequence[str]) -> None:
    """Names of files may be any bytes; all else is text, and one message says it for all rows."""
    for field in fields:
        if any("\udc80" <= character <= "\udcff" for character in field):
            seen = ascii(field.encode("utf-8", "surrogateescape"))[1:]
            raise DataError(
                f"{name}:{line}: is not in UTF-8 ({seen}); save the table as CSV in UTF-8"
            )


def _find_columns(name: str, header: Sequence[str], config: DataConfig) -> _Columns:
    titles = [unicodedata.normalize("NFC", title.strip()) for title in header]
    if any(os.path.splitext(title)[1].lower() in IMAGE_SUFFIXES for title in titles):  # noqa: PTH122
        raise DataError(
            f"{name}:1: is a row, {', '.join(map(shown, titles[:20]))}; the first line must name "
            "the columns, as path,label"
        )
    problems = _Problems(name)
    has = ", ".join(map(shown, titles[:20]))
    if len(titles) == 1:
        has += " (columns are separated by commas in a .csv, by tabs in a .tsv)"

    def find(key: str, usual: str, *, required: bool) -> int | None:
        configured: str | None = getattr(config, key)
        wanted = configured or usual
        if titles.count(wanted) > 1:
            problems.add(1, f"two columns are named {wanted!r}; rename one")
        if wanted in titles:
            return titles.index(wanted)
        if required or configured:
            meant = did_you_mean(wanted, titles)
            problems.add(1, f"no column {wanted!r}, as data.{key} has it, but {has}.{meant}")
        return None

    path = find("path_column", "path", required=True)
    label = find("label_column", "label", required=True)
    split = find("split_column", "split", required=False)
    group = find("group_column", "group", required=False)
    problems.refuse()
    assert path is not None
    assert label is not None
    return _Columns(len(titles), path, label, split, None if config.group_pattern else group)


def _row(
    line: int, fields: Sequence[str], columns: _Columns, base: Path, problems: _Problems
) -> Row | None:
    if len(fields) != columns.count:
        problems.add(
            line, f"has {len(fields)} fields where the first line has {columns.count} columns"
        )
        return None
    path, label = fields[columns.path], fields[columns.label].strip()
    label = unicodedata.normalize("NFC", label)
    found = problems.count
    full = os.path.normpath(base / path) if path and "\0" not in path else ""
    if not full:
        problems.add(line, "the path is empty" if not path else "the path holds a zero byte")
    elif not os.path.lexists(full):
        problems.add(line, f"no such file: {shown(path)} (paths are relative to the table)")
    elif os.path.isdir(full):  # noqa: PTH112
        problems.add(line, f"is a folder: {shown(path)}")
    if not label:
        problems.add(line, "the label is empty")
    elif not label.isprintable():
        problems.add(line, f"the label {label!a} holds what cannot be printed")
    split = _split(line, fields, columns, problems)
    group = fields[columns.group].strip() if columns.group is not None else ""
    return Row(full, label, split, group or None) if problems.count == found else None


def _split(line: int, fields: Sequence[str], columns: _Columns, problems: _Problems) -> str | None:
    if columns.split is None:
        return None
    word = fields[columns.split].strip()
    split = split_named(word)
    if split is None:
        what = f"{shown(word)} is no split" if word else "the split is empty"
        near = did_you_mean(word, [name for names in SPLITS.values() for name in names])
        problems.add(line, f"{what}; it must be train, val or test.{near}")
    return split


def _compare(line: int, row: Row, first: int, before: Row, problems: _Problems) -> None:
    """A file that is named twice must mean the same both times."""
    for what, here, there in (
        ("label", row.label, before.label),
        ("split", row.split, before.split),
        ("group", row.group, before.group),
    ):
        if here != there:
            problems.add(
                line,
                f"{shown(row.path)} has the {what} {here!r} here and {there!r} in line {first}; "
                "remove one of the two rows",
            )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0
