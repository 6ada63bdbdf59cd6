"""CSV and TSV tables of paths and labels; all problems are reported at once; imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune.config.data import DELIMITERS, DataConfig
from finetune.core.errors import DataError
from finetune.core.files import expand_user
from finetune.data.images import SPLITS, Images, refuse_unknown_classes, shown
from finetune.data.sources.doubtful_labels import doubtful_labels, equal_numbers
from finetune.data.sources.layout_checks import Doubt
from finetune.data.sources.table_columns import USUAL, Columns, find_columns
from finetune.data.sources.table_paths import (
    Place,
    absence,
    case_hint,
    find_places,
    place_of,
    refuse_absent,
)
from finetune.data.sources.table_text import (
    Problems,
    Record,
    cleaned,
    delimiter_of,
    read_text,
    records,
    without_declaration,
)

_MULTI_LABEL = (
    "If these images have several labels each, this is multi-label classification, which finetune "
    "does not train; keep one row for each image."
)


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    path: str
    label: str
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Table:
    """Images with their labels, and their splits if the data has them.

    Attributes:
        base: Folder that paths are relative to.
        classes: Classes in a given order; None if they are ordered by code point.
        doubt: Reason why the labels may not be classes.
    """

    name: str
    base: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    doubt: Doubt | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that occur in the rows, train first."""
        named = {row.split for row in self.rows}
        return tuple(split for split in SPLITS if split in named)

    def read(self, split: str | None, class_names: tuple[str, ...] | None) -> Images:
        """Return the images of a split, or all images if ``split`` is None.

        Raises:
            DataError: There are fewer than two classes, or an unknown class.
        """
        rows = [row for row in self.rows if row.split == split] if split else self.rows
        found = {row.label for row in rows}
        if class_names is not None:
            refuse_unknown_classes(sorted(found), class_names, lambda _: self.name)
        names = class_names or self._classes_of(found)
        if len(names) < 2:
            only = next(iter(found), None)
            raise DataError(
                f"{'no rows' if only is None else f'one class ({only})'}; a classifier needs two "
                "or more",
                kind="data.no_images" if only is None else "data.one_class",
                path=self.name,
            )
        label_of = {name: label for label, name in enumerate(names)}
        grouped = any(row.group is not None for row in rows)
        return Images(
            paths=tuple(Path(row.path) for row in rows),
            labels=tuple(label_of[row.label] for row in rows),
            class_names=names,
            num_bytes=sum(_size(row.path) for row in rows),
            # A row without a group is its own group, with a name that no other group can have.
            groups=tuple(row.group or f"\0{row.path}" for row in rows) if grouped else (),
        )

    def _classes_of(self, found: set[str]) -> tuple[str, ...]:
        if self.classes is None:
            return tuple(sorted(found))
        return tuple(name for name in self.classes if name in found)


def read_table(config: DataConfig) -> Table:
    """Read the table that ``data.root`` names.

    Raises:
        DataError: The table has problems; the message lists them with line numbers.
    """
    file = expand_user(config.root)
    name = shown(file)
    header, records = open_table(config)
    columns = find_columns(name, header, records, config)
    refuse_absent(file.parent, config.table)
    place = place_of(file.parent, config.table)
    problems = Problems(name)
    rows: dict[str, tuple[int, Row]] = {}
    absent: list[str] = []
    repeated = 0
    other_labels = 0
    for line, fields in records:
        if len(fields) == columns.count:
            _refuse_other_encoding(name, line, [fields[columns.label]])
        row = _row(line, fields, columns, place, problems, absent)
        if row is None:
            continue
        before = rows.setdefault(row.path, (line, row))
        if before[0] != line:
            repeated += 1
            other_labels += row.label != before[1].label
            _compare(line, row, *before, problems)
    hint = case_hint(absent[0], place) if absent else ""
    # One such row is probably a mistake.
    several = _MULTI_LABEL if other_labels > 1 else ""
    hints = [hint or _other_place(file.parent, absent), several]
    problems.refuse("\n".join(filter(None, hints)))
    found = tuple(row for _, row in rows.values())
    _refuse_equal_numbers(name, rows.values())
    notes = columns.notes
    if repeated:
        notes += (f"{name}: {repeated:,} rows repeat an earlier one; each counts once",)
    doubt = doubtful_labels([row.label for row in found])
    return Table(name, place.base, found, None, notes, doubt)


def open_table(config: DataConfig) -> tuple[list[str], list[Record]]:
    """Return the header of a table and its other records.

    Raises:
        DataError: The file cannot be read, is empty, or is not in UTF-8.
    """
    file = expand_user(config.root)
    name = shown(file)
    declared, text = without_declaration(read_text(file))
    word = config.table.delimiter
    if word is not None:
        delimiter = DELIMITERS[word]
    elif declared is not None:
        delimiter = declared
    else:
        wanted = [getattr(config, key) or usual for key, usual in USUAL.items()]
        usual = "\t" if file.suffix.lower() == ".tsv" else ","
        delimiter = delimiter_of(text, wanted, usual=usual)
    every = list(records(text, name, delimiter))
    if not every:
        raise DataError(
            "is empty",
            kind="data.no_images",
            path=name,
            to_do="name the columns in the first line, as in path,label",
        )
    _refuse_other_encoding(name, 1, every[0][1])
    return every[0][1], every[1:]


def _other_place(parent: Path, absent: Sequence[str]) -> str:
    """Return a hint at the folder and suffix with which the missing files are found, or ""."""
    found = []
    for folder, suffix in islice(find_places(parent, absent), 2):
        keys = {"folder": folder, "suffix": suffix}
        given = [f"data.table.{key}: {value}" for key, value in keys.items() if value]
        found.append(" and ".join(given) or "no data.table.folder and no data.table.suffix")
    return f"Files are found with {', or with '.join(found)}." if found else ""


def _refuse_other_encoding(name: str, line: int, fields: Sequence[str]) -> None:
    """Reject fields that are not UTF-8, at the first one; file names may be arbitrary bytes."""
    for field in fields:
        if any("\udc80" <= character <= "\udcff" for character in field):
            seen = ascii(field.encode("utf-8", "surrogateescape"))[1:]
            raise DataError(
                f"is not in UTF-8 ({seen})",
                kind="data.not_text",
                path=name,
                line=line,
                to_do="save the table as CSV in UTF-8",
            )


def _refuse_equal_numbers(name: str, rows: Iterable[tuple[int, Row]]) -> None:
    lines: dict[str, int] = {}
    for line, row in rows:
        lines.setdefault(row.label, line)
    pair = equal_numbers(lines)
    if pair:
        first, second = sorted(pair, key=lines.__getitem__)
        raise DataError(
            f"the label {second!r} is the same number as {first!r} in line {lines[first]}",
            kind="data.similar_class_names",
            path=name,
            line=lines[second],
            to_do="write both in the same way, or as words if they are two classes",
        )


def _row(
    line: int,
    fields: Sequence[str],
    columns: Columns,
    place: Place,
    problems: Problems,
    absent: list[str],
) -> Row | None:
    if len(fields) != columns.count:
        problems.add(
            line,
            "data.number_of_fields",
            f"has {len(fields)} fields, but the first line has {columns.count} columns",
        )
        return None
    found = problems.count
    full = _file(line, fields[columns.path], place, problems, absent)
    label = unicodedata.normalize("NFC", cleaned(fields[columns.label]))
    if not label:
        problems.add(line, "data.empty_label", "the label is empty")
    elif not label.isprintable():
        what = f"the label {label!a} contains unprintable characters"
        problems.add(line, "data.unprintable_class_name", what)
    split = columns.split_of(line, fields, problems)
    group = cleaned(fields[columns.group]) if columns.group is not None else ""
    return Row(full, label, split, group or None) if problems.count == found else None


def _file(line: int, value: str, place: Place, problems: Problems, absent: list[str]) -> str:
    """Return the path of the file that a row names; add a problem if it is not a file."""
    path = cleaned(value)
    if not path or "\0" in path:
        what = "the path contains a NUL byte" if path else "the path is empty"
        problems.add(line, "data.invalid_path", what)
        return ""
    full = place.find(value)
    if full is None:
        absent.append(path)
        problems.add(line, "data.image_not_found", absence(path, place))
        return ""
    if os.path.isdir(full):  # noqa: PTH112
        problems.add(line, "data.invalid_path", f"is a folder: {shown(path)}")
    return full


def _compare(line: int, row: Row, first: int, before: Row, problems: Problems) -> None:
    """Add a problem if two rows of one file have different values."""
    for what, here, there in (
        ("label", row.label, before.label),
        ("split", row.split, before.split),
        ("group", row.group, before.group),
    ):
        if here != there:
            problems.add(
                line,
                "data.conflicting_rows",
                f"{shown(row.path)} has the {what} {here!r} here and {there!r} in line {first}",
                "remove one of the two rows",
            )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0
