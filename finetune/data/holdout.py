"""Which images are held out for validation: in proportion, seeded, whole groups; no torch.

Who is held out follows from a hash of the seed and of each image's own name, never from a position:
the same images on every machine, and one more photo moves at most one other.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.images import Images, below, shown, shown_few
from finetune.errors import DataError
from finetune.keyed import seed_for

_ROUNDS = 5


def hold_out(images: Images, fraction: float, *, seed: int, base: Path) -> tuple[Images, Images]:
    """Images to train on, and images held out.

    Raises:
        DataError: a class cannot be on both sides.
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
    """Positions to train on and positions held out, by groups where there are any.

    Raises:
        DataError: a class cannot be on both sides.
    """
    if groups:
        return grouped_split(labels, groups, fraction, seed=seed, class_names=class_names)
    for label, count in Counter(labels).items():
        if count == 1:
            raise DataError(
                f"{where}: class {class_names[label]!r} has a single image, which "
                "cannot be both trained on and held out; add images or a val folder"
            )
    return stratified_split(labels, names, fraction, seed=seed)


def keys_of(paths: Iterable[str | os.PathLike[str]], base: Path) -> list[str]:
    """Names below ``base``, spelled alike on every system; bytes beyond UTF-8 are escaped."""
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
    """Positions to train on and positions held out, each class in proportion, seeded.

    Every class of two or more images keeps at least one on each side.
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
    """Images that stay together: how many of each class."""

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
    """As `stratified_split`, but of whole groups, so that proportions are met only nearly.

    Groups in a seeded order go to whichever side brings every class nearer to its share; then each
    is offered the other side until none gains by it.

    Raises:
        DataError: all images of a class are in one group.
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
                f"class {class_names[label]!r} lies in a single group, {shown(lone)}, and cannot "
                "be both trained on and held out; add groups, or give a val split"
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
    """Names of the groups to hold out."""
    held: Counter[int] = Counter()
    held_homes: Counter[int] = Counter()
    chosen: set[str] = set()

    def gain(group: _Group, sign: int) -> float:
        """How much nearer to their shares all classes come; each counts by its own size."""
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
        """Every class keeps a group on the side that this one leaves."""
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
    """The images with the groups that a regular expression finds in their paths, and a note.

    Raises:
        DataError: it matches none.
    """
    groups, note = groups_of(keys_of(images.paths, base), pattern, base=base)
    return replace(images, groups=groups), note


def groups_of(names: Sequence[str], pattern: str, *, base: Path) -> tuple[tuple[str, ...], str]:
    """The group of each name, and a note; a name that does not match is a group of its own.

    Raises:
        DataError: none matches.
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
        else:  # what matches an empty piece of every path would make one group of all
            unmatched.append(name)
            groups.append(f"\0{name}")  # which no pattern can give
    if len(unmatched) == len(names):
        nothing = "nothing of the paths" if any(map(expression.search, names)) else "no path"
        raise DataError(
            f"data.group_pattern: {pattern!r} matches {nothing} below {base}. Paths look like "
            f"{shown_few(names)}"
        )
    distinct = len(set(groups)) - len(unmatched)
    note = f"data.group_pattern: {distinct:,} groups in {len(names) - len(unmatched):,} images"
    if unmatched:
        note += (
            f"; {len(unmatched):,} paths do not match, each is a group of its own: "
            f"{shown_few(unmatched)}"
        )
    return tuple(groups), note


def refuse_shared_groups(train: Images, val: Images) -> None:
    """Refuse a group on both sides of a split that the data itself makes.

    Raises:
        DataError: names groups.
    """
    shared = sorted(set(train.groups) & set(val.groups))
    if shared:
        raise DataError(
            f"{len(shared):,} groups lie in both train and val ({shown_few(shared)}), so that "
            "validation would see what was trained on; keep each on one side, or remove "
            "data.group_pattern or the group column"
        )
