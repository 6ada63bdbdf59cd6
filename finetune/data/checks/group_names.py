"""Suggestion of ``data.group_pattern`` from names such as ``person124_virus_246.jpeg``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FEWEST_GROUPS = 5
_SIZES = (1.5, 100)
"""Bounds of the mean number of images of a group."""
_LARGEST = 0.3
"""Maximum share of the largest group."""
_COMMON = 0.05
"""Share of the images that a kind of name must have, to be part of the pattern."""
_MOST_NUMBERS = 3
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class GroupPattern:
    """Regular expression that finds groups in names.

    Attributes:
        num_images: Number of images with a matching name.
        example: Such a name.
    """

    pattern: str
    num_groups: int
    num_images: int
    example: str


def suggest_group_pattern(keys: Sequence[str], labels: Sequence[int]) -> GroupPattern | None:
    """Return a pattern for ``data.group_pattern``, if names seem to count images within groups.

    Such a name has a number that several images share, and more characters after it. Of names with
    several numbers, the part up to the first that forms groups is used. Numbers that only repeat
    the class form no groups.

    Args:
        keys: Paths with forward slashes.
        labels: Class of each image.
    """
    heads: dict[tuple[str, str], dict[str, set[int]]] = {}
    sizes: dict[tuple[str, str], dict[str, int]] = {}
    for key, label in zip(keys, labels, strict=True):
        stem = key.rpartition("/")[2].rpartition(".")[0]
        for number in list(_NUMBER.finditer(stem))[:_MOST_NUMBERS]:
            head, rest = stem[: number.end()], stem[number.end() :]
            if len(rest) < 2 or rest[0].isalnum():
                continue
            kind = _NUMBER.sub("0", head), rest[0]
            heads.setdefault(kind, {}).setdefault(head, set()).add(label)
            sizes.setdefault(kind, {}).setdefault(head, 0)
            sizes[kind][head] += 1
    chosen: list[tuple[str, str]] = []
    for kind in sorted(heads, key=lambda kind: kind[0].count("0")):
        known = any(kind[0].startswith(other[0] + other[1]) for other in chosen)
        if not known and _are_groups(heads[kind], sizes[kind], len(keys)):
            chosen.append(kind)
    if not chosen:
        return None
    ends = sorted({end for _, end in chosen})
    kinds = sorted({_escaped(head).replace("0", r"\d+") for head, _ in chosen})
    # A name that begins with a number is found at its beginning only.
    start = "" if all(head[:2].isalpha() for head, _ in chosen) else "(?:^|/)"
    end = _escaped(ends[0]) if len(ends) == 1 else f"[{re.escape(''.join(ends))}]"
    pattern = f"{start}({'|'.join(kinds)}){end}"
    found = [(match.group(1), key) for key in keys if (match := re.search(pattern, key))]
    return GroupPattern(
        pattern, len({group for group, _ in found}), len(found), found[0][1].rpartition("/")[2]
    )


def _escaped(text: str) -> str:
    """Escape a text for a regular expression; a dash needs no escape outside of brackets."""
    return re.escape(text).replace("\\-", "-")


def _are_groups(labels_of: dict[str, set[int]], sizes: dict[str, int], num_images: int) -> bool:
    """Return whether the heads of a kind of name are groups rather than classes or single names."""
    there, groups = sum(sizes.values()), len(sizes)
    labels = set().union(*labels_of.values())
    are_classes = groups <= len(labels) and all(len(one) == 1 for one in labels_of.values())
    return (
        there >= _COMMON * num_images
        and groups >= _FEWEST_GROUPS
        and _SIZES[0] <= there / groups <= _SIZES[1]
        and max(sizes.values()) <= _LARGEST * there
        and not are_classes
    )
