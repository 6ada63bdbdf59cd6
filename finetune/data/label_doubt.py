"""Labels of a table that are probably no classes: several in one, or measurements."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from finetune.data.images import shown_few
from finetune.data.layout import Doubt
from finetune.data.table_text import Record, cleaned

_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d{1,3})?")
_NUMBERS = re.compile(r"[\s,;|]+")
_BRACKETS = re.compile(r"[\[{(].*[\])}]")
_FEW_VALUES = 10
_SAMPLE = 1_000
_CLEAR = ("|", ";")
"""Separators that a name of a class does not contain."""


def _number(label: str) -> Decimal | None:
    """The number that a label spells in digits; None where it is a word."""
    return Decimal(label.replace(",", ".")) if _NUMBER.fullmatch(label) else None


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def doubtful_labels(labels: Sequence[str]) -> Doubt | None:
    """Return a doubt where labels look like several labels or like measurements."""
    distinct = sorted(set(labels))
    if _are_measurements(distinct, len(labels)):
        return Doubt(
            f"{len(distinct):,} different labels are numbers ({shown_few(distinct)}) and look like "
            "measurements, of which each is read as a class of its own",
            "To predict a number is regression, which finetune does not train; for classification "
            "write the name of a range, such as small and large, in place of each number.",
            certain=False,
            kind="labels",
        )
    several = _several_in_one(distinct)
    if several:
        return Doubt(
            f"labels such as {shown_few(several)} look like several labels of one image; each "
            "combination is read as a class of its own",
            "Several labels for one image are multi-label classification, which finetune does not "
            "train; keep one label in each row.",
            certain=False,
            kind="labels",
        )
    return None


def doubtful_columns(titles: Sequence[str], records: Sequence[Record]) -> str:
    """Return a hint where a table has one column of 0 and 1 for each class, else nothing."""
    rows = [
        [cleaned(value) for value in fields]
        for _, fields in records[:_SAMPLE]
        if len(fields) == len(titles)
    ]
    marks = {"0", "1", "0.0", "1.0"}
    columns = [at for at in range(len(titles)) if rows and all(row[at] in marks for row in rows)]
    if len(columns) < 2:
        return ""
    listed = shown_few(titles[at] for at in columns)
    ones = Counter(sum(row[at] in {"1", "1.0"} for at in columns) for row in rows)
    if ones.keys() == {1}:
        return (
            f"The table has one column for each class ({listed}); write the name of the column "
            "that holds 1 into a column label."
        )
    return (
        f"The table has one column for each class ({listed}), and rows with several or none of "
        "them: this is multi-label classification, which finetune does not train."
    )


def _are_measurements(distinct: Sequence[str], count: int) -> bool:
    if len(distinct) <= _FEW_VALUES:
        return False
    numbers = [_number(label) for label in distinct]
    found = [number for number in numbers if number is not None]
    if len(found) < len(distinct):
        return False
    return not all(map(_is_whole, found)) or 2 * len(distinct) > count


def _several_in_one(distinct: Sequence[str]) -> list[str]:
    """The labels that look like several; none where they may well be names of classes."""
    if all(map(_is_numbers, distinct)):
        return list(distinct)
    lists = [label for label in distinct if _BRACKETS.fullmatch(label)]
    if len(lists) == len(distinct) and any("," in label for label in lists):
        return lists
    for separator in _CLEAR:
        several = [label for label in distinct if len(_parts(label, separator)) > 1]
        if several:
            return several
    for separator in (",", " "):
        several = [label for label in distinct if len(_parts(label, separator)) > 1]
        if several and _recombine(several, distinct, separator):
            return several
    return []


def _is_numbers(label: str) -> bool:
    """Whether a label is a list of numbers, such as 0 1 1 or the corners of a box."""
    parts = _NUMBERS.split(label.strip("[](){} "))
    return len(parts) > 1 and not _number(label) and all(map(_NUMBER.fullmatch, parts))


def _recombine(several: Sequence[str], distinct: Sequence[str], separator: str) -> bool:
    """Whether the parts of labels are labels themselves, or come back in other labels.

    Names of classes share words as well (golden retriever, labrador retriever), so that for words
    either the parts of one must all be labels, or there must be many combinations of few parts.
    """
    counts = Counter(part for label in distinct for part in set(_parts(label, separator)))
    parts = {part for label in several for part in _parts(label, separator)}
    back = sum(counts[part] > 1 for part in parts)
    if separator == ",":
        return 2 * back >= len(parts)
    alone = set(distinct)
    if any(alone.issuperset(_parts(label, separator)) for label in several):
        return True
    longest = max(len(_parts(label, separator)) for label in several)
    return longest > 2 and len(counts) < len(distinct) + 1 and 5 * back >= 4 * len(parts)


def _parts(label: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, label.split(separator)) if part]


def equal_numbers(labels: Iterable[str]) -> tuple[str, str] | None:
    """The first two labels that are one whole number, such as 1 and 01, or 7 and 7.0.

    Fractions may be names of sections, of which 1.1 and 1.10 are two.
    """
    first: dict[Decimal, str] = {}
    for label in sorted(set(labels)):
        number = None if "e" in label.lower() else _number(label)
        if number is None or not _is_whole(number):
            continue
        if first.setdefault(number, label) != label:
            return first[number], label
    return None
