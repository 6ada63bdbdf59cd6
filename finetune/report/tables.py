"""Aligned text through rich: correct for wide characters, plain in a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[int] = (),
    gap: int = 3,
) -> str:
    """Rows in columns, indented by two spaces; columns in ``right`` are aligned to the right.

    As wide as they need: a terminal may wrap a row, a pipe must not, and neither may lose a cell.
    """
    lines = [tuple(header), *(tuple(row) for row in rows)]
    width = sum(max(map(cell_len, column)) + gap for column in zip_longest(*lines, fillvalue=""))
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=any(header))
    for index, title in enumerate(header):
        justify = "right" if index in right else "left"
        grid.add_column(Text(title), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in lines[1:]:
        grid.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    Console(file=out, width=max(width, 1), no_color=True, highlight=False).print(grid)
    return "\n".join(f"  {line.rstrip()}".rstrip() for line in out.getvalue().splitlines())


def count(number: int) -> str:
    """A large number in three digits: 2.23 M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return (
                f"{number / size:.3g} {unit}"
                if number < 999.5 * size
                else f"{number // size} {unit}"
            )
    return str(number)


def mib(num_bytes: int) -> str:
    """Bytes as MiB, or KiB where that is too coarse."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def plural(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``, ``2 classes``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
