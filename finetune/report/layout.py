"""Layout of text output: documents of fields, tables and paragraphs, laid out for a width.

Each ``render_…`` function returns a `Document`, which knows no width. `lines` lays it out for one:
prose wraps at spaces with a hanging indent, and long names are shortened in the middle, so that no
line is wider and none is broken inside a word.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from finetune.core.text import printable

STYLES = {
    "result": "bold",
    "good": "green",
    "warning": "yellow",
    "error": "bold red",
    "dim": "dim",
    "command": "cyan",
}
"""Style by meaning; a terminal without colour shows the same text."""

_INDENT = 2
_GAP = 3
_NARROW_GAP = 2
_LONGEST_BAR = 24
_SHORTEST_BAR = 5
_FEWEST_CELLS = 8
_READABLE_NAME = 20
_SHORT_TITLE = 14
_ELLIPSIS = "…"
_COMMAND = r"`(?:finetune |/)[^`]+`\S*|(?<=: )finetune .*"
_WORD = re.compile(rf"\s*(?:{_COMMAND}|\S+)\s*")


@dataclass(frozen=True)
class Command:
    """Shell command, which stays valid when it is wrapped, and is never shortened."""

    text: str


@dataclass(frozen=True)
class Bar:
    """Horizontal bar in a cell of a table, whose length is a share of the longest one."""

    share: float


Content = str | Text
Cell = Content | Bar


class Field(NamedTuple):
    """Label and value; an empty label continues the field above.

    Attributes:
        detail: Whether only ``--verbose`` shows the field.
    """

    label: str
    value: Content | Command
    detail: bool = False


def labelled(label: str, values: Iterable[Content | Command]) -> list[Field]:
    """Return a field for each value, of which the first has the label."""
    return [Field(label if at == 0 else "", value) for at, value in enumerate(values)]


@dataclass(frozen=True)
class Fields:
    """Labelled values in two columns."""

    rows: Sequence[Field | tuple[str, Content | Command]]


@dataclass(frozen=True)
class Table:
    """Aligned columns.

    Attributes:
        header: Column titles; may be empty strings.
        right: Indices of right-aligned columns, which keep their width.
        names: Indices of columns of names and paths: these are shortened in the middle where
            other columns wrap.
        details: Indices of columns that only ``--verbose`` shows.
        titles: Whether titles of columns are names, shortened and not wrapped.
        brief: Rows that are shown without ``--verbose``; None shows all.
        detail: Whether only ``--verbose`` shows the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    right: Sequence[int] = ()
    names: Sequence[int] = ()
    details: Sequence[int] = ()
    titles: bool = False
    brief: Sequence[Sequence[Cell]] | None = None
    detail: bool = False


@dataclass(frozen=True)
class Paragraph:
    """Wrapped text.

    Attributes:
        indent: Number of spaces before the first line.
        hanging: Number of spaces before the other lines, besides ``indent``.
    """

    text: Content
    indent: int = _INDENT
    hanging: int = _INDENT
    detail: bool = False


@dataclass(frozen=True)
class Verbatim:
    """Text whose lines are not wrapped.

    Attributes:
        exact: Whether it is the content of a file, whose lines are not shortened either.
    """

    text: str
    exact: bool = False
    detail: bool = False


Part = Fields | Table | Paragraph | Verbatim


@dataclass(frozen=True)
class Document:
    """Parts of an output; a blank line separates the groups."""

    groups: Sequence[Sequence[Part]]


def document(*groups: Part | Sequence[Part] | None) -> Document:
    """Return a document of groups of parts; None and empty groups are left out."""
    made = ([group] if isinstance(group, Part) else group for group in groups if group is not None)
    return Document([group for group in made if group])


@dataclass(frozen=True)
class View:
    """Width and detail that a document is laid out for.

    Attributes:
        width: Width in columns; None for no limit.
        shortens: Whether long names are shortened, and not only prose wrapped. Off in a pipe,
            whose reader may need the names.
        verbose: Whether details are shown.
    """

    width: int | None = None
    shortens: bool = False
    verbose: bool = False


def plain(result: Document, *, width: int | None = None, verbose: bool = True) -> str:
    """Return a document as text without styles, for files."""
    view = View(width, shortens=width is not None, verbose=verbose)
    return "\n".join(line.plain for line in lines(result, view))


def lines(result: Document, view: View) -> list[Text]:
    """Lay a document out; no line is wider than the view if it shortens."""
    found: list[Text] = []
    for group in result.groups:
        laid_out = [line for part in group for line in _laid_out(part, view)]
        if found and laid_out:
            found.append(Text())
        found += laid_out
    return found


def wrapped(text: Content, view: View, *, indent: int = 0, hanging: int = 2) -> list[Text]:
    """Wrap text at spaces; the lines after the first one are indented by ``hanging`` more.

    A line of the text that is indented itself is continued below its own indent.
    """
    made: list[Text] = []
    for paragraph in _text(text).split("\n"):
        own = len(paragraph.plain) - len(paragraph.plain.lstrip(" "))
        before = indent + (hanging if made else 0)
        after = indent + hanging + (own + hanging if own else 0)
        for line in _folded(paragraph, _less(view, after), first=after - before):
            made.append(Text(" " * before).append_text(line) if line else Text())
            before = after
    return made


def _laid_out(part: Part, view: View) -> Iterator[Text]:
    if isinstance(part, Fields):
        yield from _fields(part, view)
        return
    if part.detail and not view.verbose:
        return
    if isinstance(part, Table):
        rows = part.rows if view.verbose or part.brief is None else part.brief
        yield from _table(replace(part, rows=rows), view)
    elif isinstance(part, Paragraph):
        yield from wrapped(part.text, view, indent=part.indent, hanging=part.hanging)
    else:
        limit = view.width if view.shortens and not part.exact else None
        for line in map(_text, part.text.split("\n")):
            yield line if limit is None else _shortened(line, limit)


def _fields(fields: Fields, view: View) -> Iterator[Text]:
    rows = [row if isinstance(row, Field) else Field(*row) for row in fields.rows]
    rows = [row for row in rows if view.verbose or not row.detail]
    widest = max((cell_len(row.label) for row in rows), default=0)
    indent = _INDENT + widest + _GAP if widest else _INDENT
    for row in rows:
        if isinstance(row.value, Command):
            values = _command(row.value.text, _less(view, indent))
        else:
            paragraphs = _text(row.value).split("\n")
            inner = _less(view, indent)
            values = [line for one in paragraphs for line in _folded(one, inner)]
        for at, line in enumerate(values):
            if at and isinstance(row.value, Command) and not line.plain.startswith(" "):
                yield line  # the rest of a word, which an indent would break
                continue
            label = Text(f"{' ' * _INDENT}{row.label if not at else ''}", style="dim")
            label.append(" " * (indent - label.cell_len))
            yield label.append_text(line) if line else Text(label.plain.rstrip(), style="dim")


def _command(command: str, view: View) -> list[Text]:
    """Wrap a command so that it can be pasted: with a backslash at the end of each line."""
    if view.width is None or not view.shortens or cell_len(command) <= view.width:
        return [Text(printable(command), style="command")]
    found: list[str] = []
    line = ""
    for word in _shell_words(command):
        if line and cell_len(f"{line} {word} \\") > view.width:
            found.append(f"{line} \\")
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
        while cell_len(line) > view.width:
            head = _head(line, view.width - 2)
            found.append(f"{head}'\\" if line.lstrip().startswith("'") else f"{head}\\")
            line = ("'" if line.lstrip().startswith("'") else "") + line[len(head) :]
    return [Text(printable(one), style="command") for one in (*found, line)]


def _shell_words(command: str) -> list[str]:
    try:
        return [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:
        return command.split(" ")


def _table(table: Table, view: View) -> Iterator[Text]:
    columns = [at for at in range(len(table.header)) if view.verbose or at not in table.details]
    limit = None if view.width is None else view.width - _INDENT
    plan = _Plan.of(table, columns, limit, shortens=view.shortens)
    for number, block in enumerate(plan.blocks()):
        if number:
            yield Text()
        if any(table.header):
            titles = [table.header[at] for at in block]
            yield from _row(titles, block, table, plan, is_title=True)
        for row in table.rows:
            yield from _row([row[at] for at in block], block, table, plan)


@dataclass
class _Plan:
    """Widths of the columns of a table."""

    widths: list[int]
    gap: int
    limit: int | None

    @classmethod
    def of(cls, table: Table, shown: Sequence[int], limit: int | None, *, shortens: bool) -> _Plan:
        """Choose widths: those of the cells, made smaller step by step where that is too wide.

        Without ``shortens``, only the gaps become smaller.
        """
        columns = [[row[at] for row in table.rows] for at in range(len(table.header))]
        bars = [any(isinstance(cell, Bar) for cell in cells) for cells in columns]
        natural = [
            _LONGEST_BAR if is_bar else max(map(_cells, (title, *cells)), default=0)
            for title, cells, is_bar in zip(table.header, columns, bars, strict=True)
        ]
        natural = [width if at in shown else 0 for at, width in enumerate(natural)]
        plan = cls(natural, _GAP, limit if shortens else None)
        if limit is None or plan.total() <= limit:
            return plan
        plan.gap = _NARROW_GAP
        if not shortens:
            return plan
        for at, is_bar in enumerate(bars):
            if is_bar:
                fits = natural[at] - (plan.total() - limit)
                natural[at] = fits if fits >= _SHORTEST_BAR else 0
        for at, (title, cells) in enumerate(zip(table.header, columns, strict=True)):
            fits = max((_least(title, table), *(map(_cells, cells))), default=0)
            if natural[at] and not bars[at] and plan.total() > limit:  # a title wraps
                natural[at] = max(min(natural[at], fits), natural[at] - plan.total() + limit)
        least = [_least(title, table) for title in table.header]
        flexible = [at for at in shown if at not in table.right and not bars[at]]
        # Names stay readable as long as possible, those in the first column longest.
        for readable in (table.names, table.names[:1], ()):
            floors = {
                at: max(_READABLE_NAME if at in readable else 0, _FEWEST_CELLS, least[at])
                for at in flexible
            }
            while plan.total() > limit:
                above = [at for at in flexible if natural[at] > floors[at]]
                if not above:
                    break
                natural[max(above, key=lambda at: natural[at])] -= 1
        return plan

    def total(self) -> int:
        """Return the width of a row."""
        shown = [width for width in self.widths if width]
        return sum(shown) + self.gap * (len(shown) - 1)

    def blocks(self) -> list[list[int]]:
        """Return the columns of each block: of one if they fit, else all begin with the first."""
        shown = [at for at, width in enumerate(self.widths) if width]
        if self.limit is None or self.total() <= self.limit or len(shown) < 3:
            return [shown]
        found, width = [shown[:1]], self.widths[shown[0]]
        for at in shown[1:]:
            more = self.gap + self.widths[at]
            if len(found[-1]) > 1 and width + more > self.limit:
                found.append(shown[:1])
                width = self.widths[shown[0]]
            found[-1].append(at)
            width += more
        return found


def _row(
    cells: Sequence[Cell],
    block: Sequence[int],
    table: Table,
    plan: _Plan,
    *,
    is_title: bool = False,
) -> Iterator[Text]:
    inside = [
        _in_cell(
            cell,
            plan.widths[at],
            wraps=not table.titles if is_title else at not in table.names,
            limit=plan.limit,
        )
        for cell, at in zip(cells, block, strict=True)
    ]
    height = max(map(len, inside))
    for number in range(height):
        line = Text(" " * _INDENT, style="dim" if is_title else "")
        for column, (at, parts) in enumerate(zip(block, inside, strict=True)):
            # The last line of a wrapped title stands above the column.
            index = number - (height - len(parts)) if is_title else number
            part = parts[index] if 0 <= index < len(parts) else Text()
            space = " " * (plan.widths[at] - part.cell_len)
            if at in table.right:
                line.append(space).append_text(part)
            else:
                line.append_text(part).append(space)
            line.append(" " * plan.gap if column + 1 < len(block) else "")
        line.rstrip()
        yield line


def _in_cell(cell: Cell, width: int, *, wraps: bool, limit: int | None) -> list[Text]:
    if isinstance(cell, Bar):
        return [Text("█" * round(width * min(cell.share, 1.0)))]
    text = _text(cell)
    if limit is None or text.cell_len <= width:
        return [text]
    if wraps:
        return _folded(text, View(width, shortens=True))
    return [_shortened(text, width)]


def _folded(text: Text, view: View, first: int = 0) -> list[Text]:
    """Wrap text at spaces; words that are wider than the view are shortened if it shortens.

    Args:
        first: Number of columns that the first line has in addition.
    """
    if view.width is None or text.cell_len <= view.width + first:
        return [text]
    if view.shortens:
        text = _with_short_words(text, view.width)
    if not first:
        return _wrap(text, view.width)
    head = _wrap(text, view.width + first)[0]
    begins = len(text.plain) - len(text.plain[len(head.plain) :].lstrip())
    rest = text[begins:] if begins < len(text.plain) else None
    return [head, *(_wrap(rest, view.width) if rest else [])]


def _wrap(text: Text, width: int) -> list[Text]:
    """Break a line at spaces; `Text.wrap` would break words that are wider."""
    starts, used = [], 0
    for start, word in _words(text.plain, width):
        if used and used + cell_len(word.rstrip()) > width:
            starts.append(start)
            used = 0
        used += cell_len(word)
    made = list(text.divide(starts))
    for line in made:
        line.rstrip()
    return made


def _words(text: str, width: int) -> Iterator[tuple[int, str]]:
    """Yield the words with the spaces around them; a command that fits into a line is one word."""
    for found in _WORD.finditer(text):
        if cell_len(found[0].rstrip()) <= width:
            yield found.start(), found[0]
        else:
            for word in re.finditer(r"\s*\S+\s*", found[0]):
                yield found.start() + word.start(), word[0]


def _with_short_words(text: Text, width: int) -> Text:
    """Shorten the words that are too wide, but not those of a command, which would be useless."""
    made, end = Text(), 0
    for word in re.finditer(rf"({_COMMAND})|\S+", text.plain):
        if not word[1] and cell_len(word[0]) > width:
            made.append_text(text[end : word.start()])
            made.append_text(_shortened(text[word.start() : word.end()], width))
            end = word.end()
    return made.append_text(text[end:]) if end else text


def _shortened(text: Text, width: int) -> Text:
    """Shorten text in the middle; of a path, whole names at its end are kept if they fit."""
    if text.cell_len <= width:
        return text
    space = max(width - cell_len(_ELLIPSIS), 0)
    name = text.plain.rpartition("/")[2]
    tail_cells = min(max(cell_len(name) + 1, space - space // 3), space - min(space // 4, 4))
    tail = _tail(text.plain, tail_cells)
    if cell_len(name) < tail_cells:
        tail = tail[tail.index("/") :] if "/" in tail else tail
    head = _head(text.plain, space - cell_len(tail))
    start, end = text[: len(head)], text[len(text.plain) - len(tail) :] if tail else Text()
    return Text().append_text(start).append(_ELLIPSIS).append_text(end)


def shorten(text: str, width: int) -> str:
    """Return text shortened in the middle to a number of columns."""
    return _shortened(_text(text), width).plain


def _head(text: str, cells: int) -> str:
    used = 0
    for at, character in enumerate(text):
        used += cell_len(character)
        if used > cells:
            return text[:at]
    return text


def _tail(text: str, cells: int) -> str:
    return _head(text[::-1], cells)[::-1]


def _text(content: Content) -> Text:
    if isinstance(content, Text):
        return content
    return Text(printable(content, but="\n"))


def _cells(cell: Cell) -> int:
    return _LONGEST_BAR if isinstance(cell, Bar) else _text(cell).cell_len


def _least(title: str, table: Table) -> int:
    """Return the width below which a title is not readable."""
    if table.titles:
        return min(cell_len(title), _SHORT_TITLE)
    return min(max(map(cell_len, title.split()), default=0), _READABLE_NAME)


def _less(view: View, cells: int) -> View:
    if view.width is None:
        return view
    return View(max(view.width - cells, _FEWEST_CELLS), view.shortens, view.verbose)


def styled(text: str, style: str) -> Text:
    """Return text in one of the `STYLES`."""
    return Text(printable(text, but="\n"), style=style)


def joined(parts: Iterable[Content], between: str = ", ") -> Text:
    """Join texts, with their styles."""
    made = Text()
    for at, part in enumerate(parts):
        made.append(between if at else "").append_text(_text(part))
    return made
