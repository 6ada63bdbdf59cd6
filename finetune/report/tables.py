"""Aligned text tables with rich: correct for wide characters, plain in a pipe."""

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
    """Render rows as aligned columns, indented by two spaces.

    The table is as wide as its cells: nothing is wrapped or truncated.

    Args:
        header: Column titles; may be empty strings.
        rows: Cells of each row.
        right: Indices of right-aligned columns.
        gap: Number of spaces between columns.
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
