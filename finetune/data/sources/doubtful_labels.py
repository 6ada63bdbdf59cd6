"""Detection of table labels that are probably not classes: multiple labels or measurements."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from finetune.data.images import shown_few
from finetune.data.sources.layout_checks import Doubt
from finetune.data.sources.table_text import Record, cleaned

_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d{1,3})?")
_NUMBERS = re.compile(r"[\s,;|]+")
_BRACKETS = re.compile(r"[\[{(].*[\])}]")
_DATE = re.compile(r"\d{4}([-/.])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2(\d\d){1,2}")
_EUROPEAN = re.compile(r"[-+]?\d{1,3}(\.\d{3})+,\d+")
_ENGLISH = re.compile(r"[-+]?\d{1,3}(,\d{3})+\.\d+")
_UNIT = re.compile(
    r"[$€£¥]|%|°[CF]?|[kcmµnu]?(m|g|l|s)|km|in|ft|oz|lbs?|ml|min|h|days?|weeks?|months?|years?|yrs?"
    r"|px|k?hz|k?w|m?v|kcal|k?pa|usd|eur|gbp",
    re.IGNORECASE,
)
_MISSING = frozenset({"", "?", "na", "nan", "n/a", "<na>", "none", "null"})
"""Words that other tools write for a missing value."""
_NO_CLASSES = _MISSING - {"", "?", "none"}
"""Missing values that are improbable as class names."""
_FEW_VALUES = 10
_FEW_FRACTIONS = 5
_NEARLY_ALL = 0.9
_SAMPLE = 1_000
_CLEAR = ("|", ";")
"""Separators that class names do not contain."""
_FALSE = frozenset({"0", "0.0", "-1", "-1.0", "false"})
_TRUE = frozenset({"1", "1.0", "true"})


def _number(label: str) -> Decimal | None:
    """Return the number that a label represents, or None if it is not a number."""
    return Decimal(label.replace(",", ".")) if _NUMBER.fullmatch(label) else None


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def doubtful_labels(labels: Sequence[str]) -> Doubt | None:
    """Return a doubt if labels look like multiple labels or like measurements."""
    counts = Counter(labels)
    distinct = sorted(label for label in counts if label.casefold() not in _MISSING)
    kind = _kind_of_measurement(distinct, sum(counts[label] for label in distinct))
    if kind:
        return Doubt(
            f"{len(distinct):,} different labels are {kind} ({shown_few(distinct)}) and look like "
            "measurements, each of which is read as a separate class",
            "Predicting a number is regression, which finetune does not train; for classification "
            "write the name of a range, such as small and large, in place of each number.",
            certain=False,
            kind="labels",
        )
    several = _several_in_one(distinct)
    if several:
        return Doubt(
            f"labels such as {shown_few(several)} look like several labels of one image; each "
            "combination is read as a separate class",
            "Several labels for one image are multi-label classification, which finetune does not "
            "train; keep one label in each row.",
            certain=False,
            kind="labels",
        )
    missing = next((label for label in sorted(counts) if label.casefold() in _NO_CLASSES), None)
    if missing is not None:
        rows = f"{counts[missing]:,} row{'s have' if counts[missing] > 1 else ' has'}"
        return Doubt(
            f"{rows} the label {missing!r}, which other tools write for a missing value; it is "
            "read as a class",
            "Remove these rows or give them a label; if it is a class, write its name in full.",
            certain=False,
            kind="labels",
        )
    return None


def doubtful_columns(titles: Sequence[str], records: Sequence[Record]) -> str:
    """Return a hint if a table has one column of 0 and 1, or of True and False, for each class.

    The hint is empty if it has none; -1 also stands for 0.
    """
    rows = [
        [cleaned(value).casefold() for value in fields]
        for _, fields in records[:_SAMPLE]
        if len(fields) == len(titles)
    ]
    marks = _FALSE | _TRUE
    columns = [at for at in range(len(titles)) if rows and all(row[at] in marks for row in rows)]
    if len(columns) < 2:
        return ""
    listed = shown_few(titles[at] for at in columns)
    ones = Counter(sum(row[at] in _TRUE for at in columns) for row in rows)
    if ones.keys() == {1}:
        return (
            f"The table has one column for each class ({listed}); write the name of the column "
            "that contains 1 or True into a column label."
        )
    return (
        f"The table has one column for each class ({listed}), and rows with several or none of "
        "them: this is multi-label classification, which finetune does not train."
    )


def _kind_of_measurement(distinct: Sequence[str], count: int) -> str:
    """Return "numbers" or "dates" if the labels look like measurements, else ""."""
    if len(distinct) > _FEW_VALUES and all(map(_DATE.fullmatch, distinct)):
        return "dates"
    bare = [_without_unit(label) for label in distinct]
    units = {unit for _, unit in bare}
    numbers = [_measured(number) for number, _ in bare]
    found = [number for number in numbers if number is not None]
    if not found or len(found) < len(distinct) or len(units) > 1:
        return ""
    if not all(map(_is_whole, found)):
        return "numbers" if len(found) > _FEW_FRACTIONS else ""
    if len(found) <= _FEW_VALUES:
        return ""
    unique = 2 * len(found) > count
    return "numbers" if unique or units != {""} or _are_quantities(distinct, found) else ""


def _are_quantities(labels: Sequence[str], numbers: Sequence[Decimal]) -> bool:
    """Return whether integers are not the ids of classes, which count from 0 or 1 without gaps.

    An id with leading zeros is one too, and a table may lack the images of a few classes.
    """
    if any(re.match(r"0\d", label) for label in labels):
        return False
    least, greatest = min(numbers), max(numbers)
    return not 0 <= least <= 1 or len(numbers) < _NEARLY_ALL * float(greatest - least + 1)


def _without_unit(label: str) -> tuple[str, str]:
    """Return a label without a currency before it or a unit after it, and that unit."""
    match = re.fullmatch(r"([^\d+\-.,\s]*)\s*([-+.,\d]\S*?)\s*([^\d.,\s]*)", label)
    if match is None:
        return label, ""
    before, number, after = match.groups()
    unit = before or after
    if (before and after) or not _UNIT.fullmatch(unit):
        return label, ""
    return number, unit.lower()


def _measured(label: str) -> Decimal | None:
    """Return the number that a label represents; it may have separators of thousands."""
    if _EUROPEAN.fullmatch(label):
        label = label.replace(".", "")
    elif _ENGLISH.fullmatch(label):
        label = label.replace(",", "")
    return _number(label)


def _several_in_one(distinct: Sequence[str]) -> list[str]:
    """Return the labels that look like multiple labels; empty if they may be class names."""
    if all(map(_is_numbers, distinct)):
        return list(distinct)
    lists = [label for label in distinct if _BRACKETS.fullmatch(label)]
    if len(lists) == len(distinct) and any("," in label for label in lists):
        return lists
    for separator in _CLEAR:
        several = [label for label in distinct if len(_parts(label, separator)) > 1]
        if several:
            return several
    for separator in (",", " ", "/", "+"):
        several = [label for label in distinct if len(_parts(label, separator)) > 1]
        if several and _recombine(several, distinct, separator):
            return several
    return []


def _is_numbers(label: str) -> bool:
    """Return whether a label is a list of numbers, such as 0 1 1 or the corners of a box."""
    parts = _NUMBERS.split(label.strip("[](){} "))
    return len(parts) > 1 and not _number(label) and all(map(_NUMBER.fullmatch, parts))


def _recombine(several: Sequence[str], distinct: Sequence[str], separator: str) -> bool:
    """Return whether the parts of labels are labels themselves, or recur in other labels.

    Class names can also share words (golden retriever, labrador retriever). Therefore, for words,
    either all parts of one label must be labels, or there must be many combinations of few parts.
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
    """Return the first two labels that are the same integer, such as 1 and 01, or 7 and 7.0.

    Fractions are ignored: they may be section numbers, where 1.1 and 1.10 differ.
    """
    first: dict[Decimal, str] = {}
    for label in sorted(set(labels)):
        number = None if "e" in label.lower() else _number(label)
        if number is None or not _is_whole(number):
            continue
        if first.setdefault(number, label) != label:
            return first[number], label
    return None
