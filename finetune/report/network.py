"""A network as a row of blocks: what is frozen, what trains, and where it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.results import ParameterRow

_MOST = 24


@dataclass(frozen=True)
class Block:
    """Neighbouring modules in one state.

    Attributes:
        state: ``frozen``, ``partly`` or ``trains``.
        cut_after: What runs once for each image ends here; ``inside`` says that it ends within.
    """

    name: str
    state: str
    parameters: int
    trainable: int
    head: bool
    cut_after: bool = False
    cut_inside: bool = False


def blocks_of(parameters: Sequence[ParameterRow], cut_after: str | None) -> tuple[Block, ...]:
    """The finest blocks that fit: at each depth of the module tree neighbours share one."""
    chosen: list[Block] = []
    for depth in range(1, 6):
        blocks = _merged(parameters, depth, cut_after)
        if chosen and len(blocks) > _MOST:
            break
        chosen = blocks
    return tuple(chosen)


def _merged(parameters: Sequence[ParameterRow], depth: int, cut_after: str | None) -> list[Block]:
    modules: dict[str, list[ParameterRow]] = {}
    for row in parameters:
        path = row.name.split(".")[:-1] or [row.name]
        modules.setdefault(".".join(path[:depth]), []).append(row)
    ends = _end_of_prefix(modules, cut_after)
    blocks: list[Block] = []
    open_end = False  # a block that ends at the cut takes no neighbour in
    for name, rows in modules.items():
        block = _block(name, rows)
        if name == ends:
            within = block.state != "frozen"
            block = Block(**{**vars(block), "cut_after": True, "cut_inside": within})
        last = blocks[-1] if blocks else None
        if last and open_end and last.state == block.state and not block.head and not last.head:
            blocks[-1] = _joined(last, block)
        else:
            blocks.append(block)
        open_end = not block.cut_after
    return blocks


def _end_of_prefix(modules: dict[str, list[ParameterRow]], cut_after: str | None) -> str | None:
    """The module with parameters that the cut lies in or behind."""
    if cut_after is None:
        return None
    inside = [n for n in modules if cut_after == n or cut_after.startswith(f"{n}.")]
    if inside:
        return inside[-1]
    # Behind a module without parameters, such as the pooling: behind all that is frozen.
    before = None
    for name, rows in modules.items():
        if not all(row.frozen for row in rows):
            break
        before = name
    return before


def _block(name: str, rows: Sequence[ParameterRow]) -> Block:
    trainable = sum(row.numel for row in rows if not row.frozen)
    total = sum(row.numel for row in rows)
    state = "trains" if trainable == total else "partly" if trainable else "frozen"
    return Block(name, state, total, trainable, head=all(row.head for row in rows))


def _joined(one: Block, other: Block) -> Block:
    first = one.name.split(" … ")[0]
    last = other.name
    parent = first.rpartition(".")[0]
    if parent and last.startswith(f"{parent}."):
        last = last.removeprefix(f"{parent}.")
    return Block(
        name=f"{first} … {last}",
        state=one.state,
        parameters=one.parameters + other.parameters,
        trainable=one.trainable + other.trainable,
        head=False,
        cut_after=other.cut_after,
        cut_inside=other.cut_inside,
    )
