"""Blocks of a network, from its parameter names, as units for freeze patterns; imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_OPENED_ABOVE = 0.5
_WORTH_TRAINING = 0.03
_MOST_LISTED = 24


@dataclass(frozen=True)
class Block:
    """Module, or single parameter outside of the modules.

    Attributes:
        name: Path of the module, or name of the parameter.
        parameters: Number of parameters (elements).
        alone: Whether it is a single parameter.
    """

    name: str
    parameters: int
    alone: bool

    @property
    def pattern(self) -> str:
        """Freeze pattern that matches exactly this block."""
        return self.name if self.alone else f"{self.name}.*"

    def work(self, macs: Mapping[str, int]) -> int:
        """Return the multiply-adds within the block.

        Args:
            macs: Multiply-adds by the path of the module that does them.
        """
        within = f"{self.name}."
        return sum(n for path, n in macs.items() if path == self.name or path.startswith(within))


def blocks_of(parameters: Sequence[tuple[str, int]]) -> list[Block]:
    """Return the blocks of a backbone, first to last.

    A module with more than half of all parameters is replaced by its child modules, level by level:
    ``features`` becomes ``features.0`` and so on.

    Args:
        parameters: Name and size of each parameter in the network's order, without the new head.
    """
    most = sum(size for _, size in parameters) * _OPENED_ABOVE
    return _opened("", parameters, most)


def _opened(prefix: str, parameters: Sequence[tuple[str, int]], most: float) -> list[Block]:
    found: list[Block] = []

    def key_of(parameter: tuple[str, int]) -> str:
        return prefix + parameter[0][len(prefix) :].partition(".")[0]

    for name, group in itertools.groupby(parameters, key=key_of):
        members = list(group)
        size = sum(number for _, number in members)
        alone = members[0][0] == name
        holds_modules = any("." in inner[len(name) + 1 :] for inner, _ in members)
        if size > most and holds_modules:
            found += _opened(f"{name}.", members, most)
        else:
            found.append(Block(name, size, alone))
    return found


def units_of(parameters: Sequence[tuple[str, int]], unit: str) -> list[Block]:
    """Return the repeated blocks of a family, and the modules before, between and after them.

    Args:
        parameters: Name and size of each parameter in the network's order, without the new head.
        unit: Regular expression that matches the path of a repeated block.
    """
    matches = re.compile(unit).match
    units = {found[0] for name, _ in parameters if (found := matches(name))}
    above = {path for one in units for path in _prefixes(one)[:-1]}

    def part_of(parameter: tuple[str, int]) -> str:
        found = matches(parameter[0])
        outside = (path for path in _prefixes(parameter[0]) if path not in above)
        return found[0] if found else next(outside)

    return [
        Block(path, sum(size for _, size in members), alone=members[0][0] == path)
        for path, group in itertools.groupby(parameters, key=part_of)
        for members in [list(group)]
    ]


def _prefixes(path: str) -> list[str]:
    return list(itertools.accumulate(path.split("."), "{}.{}".format))


def last_block(blocks: Sequence[Block]) -> list[Block]:
    """Return the fewest last blocks worth training; a last norm alone has too few parameters."""
    total = sum(block.parameters for block in blocks)
    taken: list[Block] = []
    for block in reversed(blocks):
        taken.insert(0, block)
        if sum(one.parameters for one in taken) >= _WORTH_TRAINING * total:
            break
    return taken


def listed(blocks: Sequence[Block]) -> list[tuple[str, int]]:
    """Return patterns and parameter counts; if there are many blocks, neighbours share a row."""
    if len(blocks) <= _MOST_LISTED:
        return [(block.pattern, block.parameters) for block in blocks]
    rows = []
    for _, group in itertools.groupby(blocks, key=lambda block: block.name.rpartition(".")[0]):
        members = list(group)
        if len(members) <= 4 or "." not in members[0].name:
            rows += [(block.pattern, block.parameters) for block in members]
            continue
        middle = members[1:-1]
        between = f"{middle[0].pattern} … {middle[-1].pattern}"
        rows.append((members[0].pattern, members[0].parameters))
        rows.append((between, sum(block.parameters for block in middle)))
        rows.append((members[-1].pattern, members[-1].parameters))
    return rows
