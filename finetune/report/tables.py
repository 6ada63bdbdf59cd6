"""Aligned text tables, correct for wide characters, plain in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.control import strip_control_codes


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[int] = (),
    gap: int = 3,
) -> str:
    """Render rows as aligned columns, indented by two spaces.

    The table is as wide as its cells: nothing is wrapped or truncated.

    Args:
        header: Column titles; may be empty strings.
        rows: Cells of each row.
        right: Indices of right-aligned columns.
        gap: Number of spaces between columns.
    """
    lines = [line for row in (header, *rows) for line in _lines(row)]
    widths = [max(map(cell_len, column)) for column in zip_longest(*lines, fillvalue="")]
    shown = (
        (" " * gap).join(
            _pad(cell, width, right=index in right)
            for index, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in (lines if any(header) else lines[1:])
    )
    return "\n".join(f"  {line}".rstrip() for line in shown)


def _lines(row: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Lines of a row, whose cells may have several."""
    return zip_longest(*(strip_control_codes(cell).split("\n") for cell in row), fillvalue="")


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return f"{space}{cell}" if right else f"{cell}{space}"
