"""Hold-out validation split: stratified, seeded, with whole groups; imports no torch.

The choice depends on a hash of the seed and of each image's own name, never on a position. It is
the same on every machine, and adding one photo moves at most one other.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.core.errors import DataError
from finetune.core.seeding import seed_for
from finetune.data.images import Images, below, shown, shown_few

_ROUNDS = 5


def hold_out(images: Images, fraction: float, *, seed: int, base: Path) -> tuple[Images, Images]:
    """Split images into training images and held-out images.

    Raises:
        DataError: A class cannot be on both sides.
    """
    train_at, val_at = choose_held_out(
        images.labels,
        keys_of(images.paths, base),
        images.groups,
        fraction,
        seed=seed,
        class_names=images.class_names,
        where=str(base),
    )
    return images.subset(train_at), images.subset(val_at)


def choose_held_out(
    labels: Sequence[int],
    names: Sequence[str],
    groups: Sequence[str],
    fraction: float,
    *,
    seed: int,
    class_names: Sequence[str],
    where: str,
) -> tuple[list[int], list[int]]:
    """Return the positions to train on and those held out, by groups if there are any.

    Raises:
        DataError: A class cannot be on both sides.
    """
    if groups:
        return grouped_split(labels, groups, fraction, seed=seed, class_names=class_names)
    for label, count in Counter(labels).items():
        if count == 1:
            raise DataError(
                f"class {class_names[label]!r} has a single image, which cannot be both trained "
                "on and held out",
                kind="data.too_few_images",
                path=where,
                to_do="add images or a val folder",
            )
    return stratified_split(labels, names, fraction, seed=seed)


def keys_of(paths: Iterable[str | os.PathLike[str]], base: Path) -> list[str]:
    """Return paths below ``base`` in NFC with forward slashes; invalid UTF-8 is escaped.

    The names are the same on every system.
    """
    names = []
    for path in paths:
        text = below(path, base)
        outside = text == os.fspath(path) and base != Path()
        name = os.path.relpath(path, base) if outside else text
        name = name.replace(os.sep, "/")
        if not name.isascii():
            name = unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()
        names.append(name)
    return names


def stratified_split(
    labels: Sequence[int], names: Sequence[str], fraction: float, *, seed: int
) -> tuple[list[int], list[int]]:
    """Return the positions to train on and those held out: stratified and seeded.

    Every class with two or more images has at least one on each side.
    """
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    held_out: set[int] = set()
    for positions in by_label.values():
        count = min(max(1, round(len(positions) * fraction)), len(positions) - 1)
        positions.sort(key=lambda at: (seed_for(seed, "split", names[at]), names[at]))
        held_out.update(positions[:count])
    return _parts(len(labels), held_out)


@dataclass(frozen=True)
class _Group:
    """Number of images of each class in a group that is kept together."""

    name: str
    counts: Counter[int]


def grouped_split(
    labels: Sequence[int],
    groups: Sequence[str],
    fraction: float,
    *,
    seed: int,
    class_names: Sequence[str],
) -> tuple[list[int], list[int]]:
    """Split like `stratified_split`, but by whole groups; proportions are met approximately.

    Groups are assigned in a seeded order to the side that brings every class nearer to its share.
    Then each group is tried on the other side until no move improves the proportions.

    Raises:
        DataError: All images of a class are in one group.
    """
    counts: dict[str, Counter[int]] = {}
    for group, label in zip(groups, labels, strict=True):
        counts.setdefault(group, Counter())[label] += 1
    totals = Counter(labels)
    homes = Counter(label for inside in counts.values() for label in inside)
    for label, number in homes.items():
        if number == 1:
            lone = next(name for name, inside in counts.items() if label in inside)
            raise DataError(
                f"class {class_names[label]!r} is in a single group, {shown(lone)}, which cannot "
                "be both trained on and held out",
                kind="data.too_few_groups",
                to_do="add groups, or a val split",
            )
    order = [
        _Group(name, inside)
        for name, inside in sorted(
            counts.items(), key=lambda item: (seed_for(seed, "group", item[0]), item[0])
        )
    ]
    chosen = _choose(order, totals, homes, fraction)
    held_out = {at for at, group in enumerate(groups) if group in chosen}
    return _parts(len(labels), held_out)


def _choose(
    order: list[_Group], totals: Counter[int], homes: Counter[int], fraction: float
) -> set[str]:
    """Return the names of the groups to hold out."""
    held: Counter[int] = Counter()
    held_homes: Counter[int] = Counter()
    chosen: set[str] = set()

    def gain(group: _Group, sign: int) -> float:
        """Return how much a move improves the class proportions, normalised by class size."""
        gained = 0.0
        for label, count in group.counts.items():
            target = totals[label] * fraction
            now, then = held[label] - target, held[label] + sign * count - target
            gained += (now * now - then * then) / totals[label]
        return gained

    def move(group: _Group, sign: int) -> None:
        for label, count in group.counts.items():
            held[label] += sign * count
            held_homes[label] += sign
        (chosen.add if sign > 0 else chosen.remove)(group.name)

    def allowed(group: _Group, sign: int) -> bool:
        """Return whether every class keeps a group on the side that this group leaves."""
        if sign > 0:
            return all(held_homes[label] + 1 < homes[label] for label in group.counts)
        return all(held_homes[label] > 1 for label in group.counts)

    for _ in range(_ROUNDS):
        moved = False
        for group in order:
            sign = -1 if group.name in chosen else 1
            if allowed(group, sign) and gain(group, sign) > 0:
                move(group, sign)
                moved = True
        if not moved:
            break
    for label in sorted(homes):
        if not held_homes[label]:
            possible = [g for g in order if label in g.counts and allowed(g, 1)]
            if possible:
                move(max(possible, key=lambda g: gain(g, 1)), 1)
    return chosen


def _parts(count: int, held_out: set[int]) -> tuple[list[int], list[int]]:
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def group_by_pattern(images: Images, pattern: str, *, base: Path) -> tuple[Images, str]:
    """Return the images with groups that a regular expression finds in their paths, and a note.

    Raises:
        DataError: The pattern matches no path.
    """
    groups, note = groups_of(keys_of(images.paths, base), pattern, base=base)
    return replace(images, groups=groups), note


def groups_of(names: Sequence[str], pattern: str, *, base: Path) -> tuple[tuple[str, ...], str]:
    """Return the group of each name, and a note; a name that does not match is its own group.

    Raises:
        DataError: No name matches.
    """
    expression = re.compile(pattern)
    groups: list[str] = []
    unmatched: list[str] = []
    for name in names:
        match = expression.search(name)
        first = match.group(1) if match and expression.groups else None
        group = match.group(0) if match and first is None else first
        if group:
            groups.append(group)
        else:  # no match, or an empty one, which would put all images into one group
            unmatched.append(name)
            groups.append(f"\0{name}")  # paths contain no NUL: no pattern gives it
    if len(unmatched) == len(names):
        nothing = (
            "only the empty text in the paths" if any(map(expression.search, names)) else "no path"
        )
        raise DataError(
            f"{pattern!r} matches {nothing} below {base}",
            kind="data.pattern_matches_nothing",
            key="data.group_pattern",
            to_do=f"Paths look like {shown_few(names)}",
        )
    distinct = len(set(groups)) - len(unmatched)
    note = f"data.group_pattern: {distinct:,} groups in {len(names) - len(unmatched):,} images"
    if unmatched:
        note += (
            f"; {len(unmatched):,} paths do not match; each is a separate group: "
            f"{shown_few(unmatched)}"
        )
    return tuple(groups), note


def refuse_shared_groups(train: Images, val: Images) -> None:
    """Reject groups that are in both splits of data with its own splits.

    Raises:
        DataError: There are such groups; the message names them.
    """
    shared = sorted(set(train.groups) & set(val.groups))
    if shared:
        raise DataError(
            f"{len(shared):,} groups are in both train and val ({shown_few(shared)}), so "
            "validation would use images that are like training images",
            kind="data.shared_groups",
            to_do="keep each group on one side, or remove data.group_pattern or the group column",
        )
