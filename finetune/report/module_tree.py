"""Module tree with frozen and trainable counts, condensed to stay readable for 400 layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finetune.core.text import count
from finetune.report.layout import Table
from finetune.results.freeze import ParameterRow

_MOST_LINES = 60


@dataclass
class _Node:
    name: str
    children: dict[str, _Node] = field(default_factory=dict)
    frozen: int = 0
    trainable: int = 0
    tensors: int = 0
    head: bool = False

    @property
    def state(self) -> str:
        if not self.trainable:
            return "frozen"
        return "partly frozen" if self.frozen else "trainable"


def render_module_tree(parameters: Sequence[ParameterRow]) -> Table:
    """Return the tree at the deepest level that fits into sixty lines.

    Adjacent modules in the same state share a line; only partly frozen modules are expanded.
    """
    root = _build(parameters)
    rows: list[list[str]] = []
    for depth in range(1, 20):
        deeper = list(_rows(root, depth=depth, indent=0))
        if rows and (len(deeper) > _MOST_LINES or len(deeper) == len(rows)):
            break
        rows = deeper
    header = ("module", "state", "tensors", "frozen", "trainable")
    return Table(header, rows, right=(2, 3, 4), names=(0,))


def _build(parameters: Sequence[ParameterRow]) -> _Node:
    root = _Node("")
    for row in parameters:
        node = root
        for part in ("", *row.name.split(".")):
            if part:
                node = node.children.setdefault(part, _Node(part))
            node.frozen += row.numel if row.frozen else 0
            node.trainable += 0 if row.frozen else row.numel
            node.tensors += 1
            node.head = row.head
    return root


def _rows(node: _Node, *, depth: int, indent: int) -> Iterator[list[str]]:
    for run in _runs(list(node.children.values()), opening=depth > 1):
        first, last = run[0], run[-1]
        name = first.name if len(run) == 1 else f"{first.name} … {last.name}"
        head = "  (new head)" if len(run) == 1 and _is_head(first) else ""
        yield [
            f"{'  ' * indent}{name}{head}",
            first.state,
            str(sum(child.tensors for child in run)),
            count(sum(child.frozen for child in run)),
            count(sum(child.trainable for child in run)),
        ]
        if len(run) == 1 and depth > 1 and _opens(first):
            yield from _rows(first, depth=depth - 1, indent=indent + 1)


def _is_head(node: _Node) -> bool:
    return node.head and all(child.head and not child.children for child in node.children.values())


def _opens(node: _Node) -> bool:
    """Whether to expand a module: it is partly frozen or contains the head."""
    return bool(node.children) and (
        node.state == "partly frozen" or (node.head and not _is_head(node))
    )


def _runs(children: list[_Node], *, opening: bool) -> Iterator[list[_Node]]:
    """Yield runs of adjacent modules that share a line: same state, and not expanded."""
    run: list[_Node] = []
    for child in children:
        alone = child.head or (opening and _opens(child))
        if run and (alone or child.state != run[-1].state):
            yield run
            run = []
        if alone:
            yield [child]
        else:
            run.append(child)
    if run:
        yield run
