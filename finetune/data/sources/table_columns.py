"""Columns of a table: paths, labels, groups and splits."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config.data import DataConfig
from finetune.core.errors import DataError
from finetune.core.text import did_you_mean
from finetune.data.images import IMAGE_SUFFIXES, SPLITS, shown, split_named
from finetune.data.sources.doubtful_labels import doubtful_columns
from finetune.data.sources.table_text import Problems, Record, cleaned

USUAL = {
    "path_column": "path",
    "label_column": "label",
    "split_column": "split",
    "group_column": "group",
}
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
_SAMPLE = 1_000
_NEARLY_ALL = 0.9
_FOLDS = frozenset({"fold", "folds", "kfold", "cvfold"})
_SPLIT_TITLES = frozenset({"split", "splits", "subset", "partition", "usage", "phase"})
_FLAG_TITLES = frozenset({"holdout", "heldout", "eval", "evaluation"})
_MOST_SPLITS = 5
"""Maximum number of distinct values of a column that may define the split in other words."""


@dataclass(frozen=True)
class SplitColumn:
    """Column that defines the split of a row.

    Attributes:
        at: Position of the column.
        title: Name of the column.
        flag: Split of rows with a true value; None if the column only contains split names.
    """

    at: int
    title: str
    flag: str | None


@dataclass(frozen=True)
class Columns:
    """Positions of the columns that are read, and the total number of columns."""

    count: int
    path: int
    label: int
    split: tuple[SplitColumn, ...]
    group: int | None
    notes: tuple[str, ...] = ()

    def split_of(self, line: int, fields: Sequence[str], problems: Problems) -> str | None:
        """Return the split of a row, or None if the table has none or a problem was added."""
        named: set[str] = set()
        before = problems.count
        for column in self.split:
            split = _split_in(column, fields[column.at], line, problems)
            named |= {split} if split else set()
        if problems.count > before or not self.split:
            return None
        titles = ", ".join(column.title for column in self.split)
        if len(named) > 1:
            what = f"is in several splits: {' and '.join(sorted(named))} ({titles})"
            problems.add(line, "data.unknown_split", what)
            return None
        others = [split for split in SPLITS if split not in {c.flag for c in self.split}]
        if not named and not others:
            what = f"is in no split: {titles} are all false"
            problems.add(line, "data.unknown_split", what)
        return next(iter(named or others), None)


def titles_of(header: Sequence[str]) -> list[str]:
    """Return the column names in NFC, without surrounding white space and quotation marks."""
    return [unicodedata.normalize("NFC", cleaned(title)) for title in header]


def column_of(titles: Sequence[str], wanted: str) -> int | None:
    """Return the position of a column, by exact name or else by a unique case-insensitive name."""
    if wanted in titles:
        return titles.index(wanted)
    folded = [title.casefold() for title in titles]
    return folded.index(wanted.casefold()) if folded.count(wanted.casefold()) == 1 else None


def find_columns(
    name: str, header: Sequence[str], records: Sequence[Record], config: DataConfig
) -> Columns:
    """Find the columns that the config names, or those with the usual names.

    Raises:
        DataError: A column is missing or ambiguous.
    """
    titles = titles_of(header)
    if any(os.path.splitext(title)[1].lower() in IMAGE_SUFFIXES for title in titles):  # noqa: PTH122
        raise DataError(
            f"is a row of values ({', '.join(map(shown, titles[:20]))}), not of column names",
            kind="data.table_without_header",
            path=name,
            line=1,
            to_do="name the columns in the first line, as in path,label",
        )
    problems = Problems(name)
    has = ", ".join(map(shown, titles[:20]))
    if len(titles) == 1:
        has += " (one column; data.table.delimiter: comma, semicolon, tab or pipe)"

    def find(key: str, *, required: bool) -> int | None:
        configured: str | None = getattr(config, key)
        wanted = configured or USUAL[key]
        if titles.count(wanted) > 1:
            what = f"two columns are named {wanted!r}"
            problems.add(1, "data.table_columns", what, "rename one")
        at = None if configured and configured not in titles else column_of(titles, wanted)
        if at is None and (required or configured):
            meant = did_you_mean(wanted, titles)
            what = f"no column {wanted!r} (data.{key}), but {has}"
            problems.add(1, "data.no_such_column", what, meant)
        return at

    path = find("path_column", required=True)
    label = find("label_column", required=True)
    split = find("split_column", required=False)
    group = find("group_column", required=False)
    group = None if config.group_pattern else group
    problems.refuse(doubtful_columns(titles, records) if label is None else "")
    assert path is not None
    assert label is not None
    splits: tuple[SplitColumn, ...]
    if split is not None:
        flag = (flag_of(titles[split]) or "val") if config.split_column else None
        splits = (SplitColumn(split, titles[split], flag),)
        return Columns(len(titles), path, label, splits, group)
    splits, notes = _other_splits(name, titles, records, {path, label, group})
    return Columns(len(titles), path, label, splits, group, notes)


def _other_splits(
    name: str, titles: Sequence[str], records: Sequence[Record], taken: set[int | None]
) -> tuple[tuple[SplitColumn, ...], tuple[str, ...]]:
    """Return columns that define the split under a name other than ``split``, and notes on them.

    A column with a name such as is_valid is a flag whatever its values, so that a typo in it is
    found. A name such as valid may mean something else, for example that a photo is usable.
    """
    flags: list[SplitColumn] = []
    words: list[SplitColumn] = []
    notes: list[str] = []
    for at, title in enumerate(titles):
        if at in taken:
            continue
        flag = flag_of(title)
        strict = flag is not None and _plain(title).startswith("is")
        values = _counts(records, at, len(titles)) if flag else Counter[str]()
        if strict or _is_flag(values, flag):
            flags.append(SplitColumn(at, title, flag))
        elif _names_splits(records, at, len(titles)):
            words.append(SplitColumn(at, title, None))
        elif flag:
            notes.append(
                f"{name}: column {title!r} is not read as the split, for not all of its values are "
                f"true or false, or most are true; data.split_column: {title} reads it"
            )
        elif _plain(title) in _FOLDS:
            notes.append(
                f"{name}: column {title!r} is not used; a column is_valid with true and false "
                "would choose the validation images"
            )
        elif _may_be_split(title, records, at, len(titles)):
            notes.append(
                f"{name}: column {title!r} is not read as the split; data.split_column: {title} "
                "reads it, where its values are train, val and test, or true and false"
            )
    if flags:
        listed = ", ".join(f"true in {c.title!r} means {c.flag}" for c in flags)
        return tuple(flags), (f"{name}: {listed}", *notes)
    if len(words) > 1:
        listed = " and ".join(repr(column.title) for column in words)
        raise DataError(
            f"the columns {listed} all name splits",
            kind="data.table_columns",
            path=name,
            line=1,
            to_do="choose one with data.split_column",
        )
    if words:
        notes.append(f"{name}: the split is read from column {words[0].title!r}")
    return tuple(words), tuple(notes)


def _plain(title: str) -> str:
    return re.sub(r"[\W_]+", "", title.casefold())


def flag_of(title: str) -> str | None:
    """Return the split that a boolean column marks, by its name: is_valid, val, in_test, …"""
    return split_named(_marked(title))


def _marked(title: str) -> str:
    """Return what a boolean column marks: holdout for is_holdout, valid for valid_set."""
    return re.sub(r"^(is|in)|(set|flag)$", "", _plain(title))


def _may_be_split(title: str, records: Sequence[Record], at: int, count: int) -> bool:
    """Return whether a column may define the split in words that are not read."""
    if _plain(title) in _SPLIT_TITLES or _marked(title) in _FLAG_TITLES:
        return len(_counts(records, at, count)) in range(2, _MOST_SPLITS + 1)
    if len(_counts(records[:_SAMPLE], at, count)) > _MOST_SPLITS:
        return False
    values = _counts(records, at, count)
    train = any(split_named(value) == "train" for value in values)
    return train and len(values) in range(2, _MOST_SPLITS + 1)


def _counts(records: Sequence[Record], at: int, count: int) -> Counter[str]:
    """Count each case-folded value of a column."""
    counts = Counter(fields[at] for _, fields in records if len(fields) == count)
    cleaned_counts: Counter[str] = Counter()
    for value, times in counts.items():
        cleaned_counts[cleaned(value).casefold()] += times
    return cleaned_counts


def _is_flag(values: Counter[str], split: str | None) -> bool:
    """Return whether all values are booleans; for val and test, at most half may be true."""
    if not values or not values.keys() <= _BOOLEANS.keys():
        return False
    marked = sum(times for value, times in values.items() if _BOOLEANS[value])
    return split == "train" or 2 * marked <= values.total()


def _names_splits(records: Sequence[Record], at: int, count: int) -> bool:
    """Return whether nearly all non-empty values are split names, and some are train."""
    for some in (records[:_SAMPLE], records):  # the sample excludes most columns quickly
        values = _counts(some, at, count)
        splits = Counter({value: n for value, n in values.items() if split_named(value)})
        if not splits or splits.total() < _NEARLY_ALL * (values.total() - values[""]):
            return False
    return any(split_named(value) == "train" for value in splits)


def _split_in(column: SplitColumn, value: str, line: int, problems: Problems) -> str | None:
    """Return the split that a value defines, or None if it is false or a problem was added."""
    word = cleaned(value)
    split = split_named(word)
    if split is not None:
        return split
    if column.flag is not None and word.casefold() in _BOOLEANS:
        return column.flag if _BOOLEANS[word.casefold()] else None
    splits = [name for names in SPLITS.values() for name in names]
    if column.flag is None:
        what = f"{shown(word)} is not a split" if word else "the split is empty"
        what = f"{what}; it must be train, val or test"
        problems.add(line, "data.unknown_split", what, did_you_mean(word, splits))
    else:
        what = f"{shown(word)} in column {column.title!r}" if word else f"{column.title!r} is empty"
        meant = did_you_mean(word, ["true", "false", *splits])
        what = f"{what}; it must be true or false, or else train, val or test"
        problems.add(line, "data.unknown_split", what, meant)
    return None
