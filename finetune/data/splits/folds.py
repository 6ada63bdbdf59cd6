"""Cross-validation folds: stratified, seeded, with whole groups; imports no torch.

As in `finetune.data.splits.holdout`, the fold of an image depends on a hash of its own name, so
that it is the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.core.errors import DataError
from finetune.core.seeding import seed_for


@dataclass(frozen=True)
class Fold:
    """Positions of the training images and of the held-out images of one fold."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def make_folds(
    labels: Sequence[int],
    names: Sequence[str],
    groups: Sequence[str],
    count: int,
    *,
    seed: int,
) -> tuple[Fold, ...]:
    """Return stratified folds that hold out every image once and keep groups whole.

    A class with a single image, or in a single group, is trained on in every fold: held out, it
    would be unknown.

    Args:
        names: Names of the images, the same on every machine.
        groups: Group of each image, which is kept together; empty without groups.

    Raises:
        DataError: There are too few images, or groups, for ``count`` folds.
    """
    if groups:
        fold_of = _grouped(labels, groups, count, seed)
    else:
        fold_of = _dealt(labels, names, count, seed)
    possible = len({*fold_of} - {_NEVER})
    if possible < count:
        what = f"{len({*groups}):,} groups" if groups else f"{len(labels):,} images"
        raise DataError(
            f"{what} are enough for {possible} folds, not for {count}",
            kind="data.too_few_for_folds",
            key="tune.folds",
            to_do="set fewer, or 0 to use the validation split",
        )
    return tuple(
        Fold(
            train=tuple(at for at, fold in enumerate(fold_of) if fold != number),
            held_out=tuple(at for at, fold in enumerate(fold_of) if fold == number),
        )
        for number in range(count)
    )


def groups_of_copies(names: Sequence[str], contents: Sequence[str]) -> tuple[str, ...]:
    """Return a group for each image, the same for images with equal contents.

    Copies share a fold, because a held-out copy of a training image would measure nothing. The
    result is empty if all contents differ.

    Args:
        names: Names of the images, the same on every machine.
        contents: Content key of each image; equal for equal images.
    """
    if len({*contents}) == len(contents):
        return ()
    first: dict[str, str] = {}
    for name, content in sorted(zip(names, contents, strict=True)):
        first.setdefault(content, name)
    return tuple(first[content] for content in contents)


_NEVER = -1
"""Fold number of images that are never held out."""


def _dealt(labels: Sequence[int], names: Sequence[str], count: int, seed: int) -> list[int]:
    """Assign the images of each class to the folds in turn, in a seeded order.

    Each class continues at the fold after the last one used, so that folds have equal sizes.
    """
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    fold_of = [_NEVER] * len(labels)
    dealt = 0
    for label in sorted(by_label):
        positions = by_label[label]
        if len(positions) == 1:
            continue
        for at in sorted(positions, key=lambda at: (seed_for(seed, "fold", names[at]), names[at])):
            fold_of[at] = dealt % count
            dealt += 1
    return fold_of


def _grouped(labels: Sequence[int], groups: Sequence[str], count: int, seed: int) -> list[int]:
    """Assign groups, largest first, to the fold whose class proportions they improve most."""
    counts: dict[str, Counter[int]] = {}
    for group, label in zip(groups, labels, strict=True):
        counts.setdefault(group, Counter())[label] += 1
    homes = Counter(label for inside in counts.values() for label in inside)
    order = sorted(
        (name for name, inside in counts.items() if all(homes[label] > 1 for label in inside)),
        key=lambda name: (-counts[name].total(), seed_for(seed, "fold", name), name),
    )
    totals = Counter(labels)
    held: list[Counter[int]] = [Counter() for _ in range(count)]

    def crowding(fold: int, inside: Counter[int]) -> tuple[float, int, int]:
        """Return how much the imbalance of the folds grows, normalised by class size."""
        worse = sum(
            ((held[fold][label] + number) ** 2 - held[fold][label] ** 2) / totals[label]
            for label, number in inside.items()
        )
        return worse, held[fold].total(), fold

    held_homes: list[Counter[int]] = [Counter() for _ in range(count)]
    fold_of_group = dict.fromkeys(counts, _NEVER)
    for name in order:
        inside = counts[name]
        # Every class keeps a group outside each fold.
        possible = [
            fold
            for fold in range(count)
            if all(held_homes[fold][label] + 1 < homes[label] for label in inside)
        ]
        if possible:
            fold = min(possible, key=lambda fold: crowding(fold, inside))
            held[fold] += inside
            held_homes[fold].update(inside.keys())
            fold_of_group[name] = fold
    return [fold_of_group[group] for group in groups]
