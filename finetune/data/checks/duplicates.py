"""Findings on duplicate images: equal or near-equal images within or across classes and splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.checks.inspect_dataset import DatasetInspection
from finetune.data.checks.near_duplicates import near_pairs
from finetune.data.checks.survey import Survey
from finetune.data.images import shown
from finetune.results.check import Finding

MOST_EXAMPLES = 10_000
_DRAWN = (
    "of them would be on both sides of the split that training draws; the network would have "
    "memorized them, so accuracy would be overestimated."
)


def copies(survey: Survey, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yield findings on images that are equal pixel by pixel."""
    conflicts = [g for g in groups if len({survey.class_of[at] for at in g}) > 1]
    leaks = [g for g in groups if len({survey.home_of(at) for at in g}) > 1]
    if conflicts:
        yield Finding(
            "label_conflict",
            "error",
            f"{_number(len(conflicts), 'image')} filed under more than one class",
            "At least one of the labels is wrong, and no network can learn both.",
            "Keep each in its correct class, and remove it from the others.",
            len(conflicts),
            _examples(survey, conflicts),
        )
    if leaks:
        yield Finding(
            "leak",
            "error",
            f"{_number(len(leaks), 'image')} in more than one split",
            "The network has memorized its training images, so accuracy is overestimated.",
            "Remove the copies from one of the splits.",
            len(leaks),
            _examples(survey, leaks),
        )
    yield from _repeats(survey, groups)


def _repeats(survey: Survey, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Yield findings on copies within one class of one split of the data itself."""
    repeats: list[Sequence[int]] = []
    extra = straddling = 0
    for group in groups:
        drawn: dict[tuple[int, int], set[int]] = {}
        for at in group:
            place = survey.class_of[at], survey.home_of(at)
            drawn.setdefault(place, set()).add(survey.split_of[at])
        if len(group) > len(drawn):
            extra += len(group) - len(drawn)
            repeats.append(group)
            straddling += any(len(sides) > 1 for sides in drawn.values())
    if extra:
        yield Finding(
            "duplicate",
            "error" if straddling else "warning",
            f"{_number(extra, 'copy', 'copies')} within a class and split",
            f"{straddling:,} {_DRAWN}" if straddling else "Copies weigh more than other images do.",
            "Keep one of each.",
            extra,
            _examples(survey, repeats),
        )


def equal_groups(inspections: DatasetInspection) -> list[list[int]]:
    """Return groups of two or more positions of images with equal pixels, in order."""
    readable = inspections.readable
    pixels = inspections.pixels[readable]
    order = np.lexsort((readable, pixels[:, 1], pixels[:, 0]))
    ordered = pixels[order]
    edges = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    ends = np.append(edges, len(order))
    starts = np.append(0, edges)
    groups = [
        readable[order[start:end]].tolist()
        for start, end in zip(starts, ends, strict=True)
        if end - start > 1
    ]
    return sorted(groups)


@dataclass(frozen=True)
class AlikePairs:
    """Pairs of images that look alike, without copies of the same pixels.

    Attributes:
        pairs: Positions ``(N, 2)``.
        bits: Number of bits in which the perceptual hashes of a pair differ.
        complete: Whether all pairs were found.
    """

    pairs: NDArray[np.int64]
    bits: NDArray[np.int64]
    complete: bool


def alike_pairs(inspections: DatasetInspection, groups: Sequence[Sequence[int]]) -> AlikePairs:
    """Return pairs of similar images; of each group of equal images, the first stands for all."""
    alone = inspections.has_phash.copy()
    for group in groups:
        alone[group[1:]] = False
    positions = np.flatnonzero(alone)
    near = near_pairs(inspections.phash[positions])
    pairs = positions[near.pairs]
    hashes = inspections.phash[pairs]
    bits = np.bitwise_count(hashes[:, 0] ^ hashes[:, 1]).astype(np.int64)
    return AlikePairs(pairs, bits, near.complete)


def near_copies(
    survey: Survey, inspections: DatasetInspection, groups: Sequence[Sequence[int]]
) -> Iterator[Finding]:
    """Yield findings on similar images, such as one image cropped, resized or recoloured."""
    near = alike_pairs(inspections, groups)
    pairs = near.pairs
    split_of, class_of = np.asarray(survey.split_of), np.asarray(survey.class_of)
    homes = np.array([survey.home_of(at) for at in pairs.ravel().tolist()]).reshape(pairs.shape)
    across = homes[:, 0] != homes[:, 1]
    apart = class_of[pairs[:, 0]] != class_of[pairs[:, 1]]
    drawn_apart = split_of[pairs[:, 0]] != split_of[pairs[:, 1]]
    atleast = "" if near.complete else "at least "

    def finding(
        kind: str, level: str, chosen: NDArray[np.bool_], where: str, why: str, todo: str
    ) -> Iterator[Finding]:
        some = pairs[chosen]
        if len(some):
            title = f"{atleast}{_number(len(some), 'pair')} of images that look alike {where}"
            examples = _examples(survey, some[:MOST_EXAMPLES].tolist(), sign="≈")
            yield Finding(kind, level, title, why, todo, len(some), examples)

    yield from finding(
        "near_leak",
        "warning",
        across,
        "in different splits",
        "If they show the same thing, accuracy is overestimated.",
        "Compare them, and keep images of the same thing in one split.",
    )
    yield from finding(
        "near_conflict",
        "warning",
        apart & ~across,
        "in different classes",
        "If they show the same thing, one of the labels is wrong.",
        "Compare them, and move both to the correct class.",
    )
    within = ~apart & ~across
    straddling = int((within & drawn_apart).sum())
    yield from finding(
        "near_duplicate",
        "warning" if straddling else "note",
        within,
        "within a class and split",
        f"{straddling:,} {_DRAWN}" if straddling else "They add less than other images do.",
        "Compare them; data.group_pattern keeps images of one origin in one split."
        if straddling
        else "Nothing has to be done.",
    )


def _examples(survey: Survey, groups: Sequence[Sequence[int]], sign: str = "=") -> tuple[str, ...]:
    return tuple(
        f" {sign} ".join(shown(survey.paths[at], survey.base) for at in group[:4])
        + (f" {sign} … {len(group) - 4} more" if len(group) > 4 else "")
        for group in groups[:MOST_EXAMPLES]
    )


def _number(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
