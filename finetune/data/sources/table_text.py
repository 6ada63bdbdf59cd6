"""Text of a CSV file: delimiter, records and cleaned values."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from finetune.config.data import DELIMITERS
from finetune.core.errors import DataError, Problem, worded
from finetune.core.files import exists, is_file
from finetune.data.images import near

_STRAIGHT = "\"'`"
_LOW = "\u201e\u201a"
"""Opening quotation marks that Unicode classifies as brackets."""
_MOST_SHOWN = 10
_DECLARATION = re.compile(r"""(?i)"?sep=(.)"?[ ,;\t]*(?=[\r\n])""")

Record = tuple[int, list[str]]
"""First line of a record (1-based) and its fields."""


class Problems:
    """Collector of the problems of a table; keeps the first few."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: list[Problem] = []
        self.count = 0

    def add(self, line: int, kind: str, what: str, to_do: str = "") -> None:
        self.count += 1
        if self.count <= _MOST_SHOWN:
            self.first.append(Problem(kind, what, to_do, path=self.name, line=line))

    def refuse(self, hint: str = "") -> None:
        """Raise DataError if there is a problem, with ``hint`` as the last line."""
        if not self.count:
            return
        error = DataError.of(self.first, kind="data.table_rows")
        if self.count > 1:
            lines = [f"  {worded(problem)}" for problem in self.first]
            if self.count > len(lines):
                lines.append(f"  … and {self.count - len(lines):,} more")
            what = "\n".join([f"{self.count:,} problems", *lines])
            error = error.at(what=what, path=self.name)
        raise error.at(also=hint or None)


def cleaned(value: str) -> str:
    """Return a value without surrounding white space and one pair of quotation marks.

    The csv module removes a quotation mark only if it is the very first character of a field.
    """
    value = value.strip()
    first, inner, last = value[:1], value[1:-1], value[-1:]
    if len(value) > 1 and _are_pair(first, last) and first not in inner and last not in inner:
        return inner.strip()
    return value


def _are_pair(first: str, last: str) -> bool:
    if first in _STRAIGHT or last in _STRAIGHT:
        return first == last
    kinds = {"Pi", "Pf"}  # initial and final; languages use them in different order
    opens = first in _LOW or unicodedata.category(first) in kinds
    return opens and unicodedata.category(last) in kinds


def read_text(file: Path) -> str:
    """Read a table as text; invalid UTF-8 is kept as surrogates, for use in file names.

    Raises:
        DataError: The file is missing, cannot be read, or is not UTF-8 text.
    """
    if exists(file) and not is_file(file):
        raise DataError(
            "is not a regular file, but a pipe or a device",
            kind="data.not_a_file",
            key="data.root",
            path=file,
        )
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(
            "no such file", kind="data.not_found", key="data.root", path=file, to_do=near(file)
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", kind="data.unreadable", key="data.root", path=file
        ) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        raise DataError(
            "is not a text file in UTF-8",
            kind="data.not_text",
            path=file,
            to_do="save it as CSV in UTF-8",
        )
    return content.decode("utf-8-sig", errors="surrogateescape")


def without_declaration(text: str) -> tuple[str | None, str]:
    """Return the delimiter that a first line ``sep=;`` declares, and the text without that line.

    Excel writes and reads this line. An empty line remains, so that line numbers stay the same.
    """
    match = _DECLARATION.match(text)
    if match is None:
        return None, text
    declared = match[1] if match[1] in DELIMITERS.values() else None
    return declared, text[match.end() :]


def delimiter_of(text: str, wanted: Collection[str], *, usual: str) -> str:
    """Return the delimiter with which the first line contains most of the wanted columns.

    Ties are broken by the number of columns, so that an error can list them. Values are not
    considered, because they may contain many other delimiters.
    """
    order = sorted(DELIMITERS.values(), key=lambda delimiter: delimiter != usual)
    best, most = usual, (-1, 0)
    for delimiter in order:
        titles = [cleaned(title).casefold() for title in _first(text, delimiter)]
        found = len({name.casefold() for name in wanted} & set(titles)), len(titles)
        if found > most:
            best, most = delimiter, found
    return best


def _first(text: str, delimiter: str) -> Sequence[str]:
    try:
        return next(iter(records(text, "", delimiter)), (1, ()))[1]
    except DataError:
        return ()


def records(text: str, name: str, delimiter: str) -> Iterator[Record]:
    """Yield each non-empty record; a quoted field may span lines.

    Raises:
        DataError: A record cannot be parsed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    line = 1
    lines: list[str] = []
    try:
        for fields in reader:
            if reader.line_num > line:
                lines = lines or list(io.StringIO(text, newline=""))
                _refuse_open_quote(lines[line - 1 : reader.line_num], name, line, delimiter)
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"cannot be read as a table: {error}", kind="data.table_syntax", path=name, line=line
        ) from None


def _refuse_open_quote(lines: Sequence[str], name: str, line: int, delimiter: str) -> None:
    """Reject a record that spans lines only because a closing quotation mark is missing."""
    try:
        for _ in csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True):
            pass
    except csv.Error:
        raise DataError(
            "a quotation mark opens a value here, but none closes it before the delimiter",
            kind="data.table_syntax",
            path=name,
            line=line,
            to_do='close it, or write "" for a quotation mark within a value',
        ) from None
