"""Values of the template of the page of ``check-data``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.core.text import plural
from finetune.report.page.data_rows import counts_table, finding_rows
from finetune.results.check import CheckReport

PAIR_KINDS = {
    "classes": "in different classes",
    "splits": "in different splits",
    "same": "within a class and split",
}
"""Kinds of pairs, most serious first."""


@dataclass(frozen=True)
class Photo:
    """A photo of the data; ``url`` is the data URL of its thumbnail, if it is drawn."""

    path: str
    name: str
    split: str
    url: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two photos that are equal or look alike.

    Attributes:
        kinds: Some of ``classes`` and ``splits``, in which they differ, or ``same``.
        bits: Number of bits in which their perceptual hashes differ; None for equal pixels.
        difference: Mean difference of their pixels as a fraction, for pairs that are drawn.
    """

    first: Photo
    second: Photo
    kinds: Sequence[str]
    bits: int | None
    difference: float | None = None


@dataclass(frozen=True)
class OddPhotos:
    """Photos with something unusual in common.

    Attributes:
        count: Number of these photos, of which ``photos`` holds some.
        notes: What is said of each photo; empty if the title says all.
    """

    title: str
    count: int
    photos: Sequence[Photo]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class CheckFacts:
    """Input of the page of ``check-data``.

    Attributes:
        pairs: Pairs of the page's list, closest first; those that are drawn have thumbnails.
        num_pairs: Number of pairs by kind.
        complete: Whether all pairs were found.
        odd: Odd and unreadable photos, and the smallest and the largest one.
        sizes: Most frequent widths and heights, with their number of images.
        table: Name of the file of all pairs.
        written: Date of the page.
    """

    report: CheckReport
    verdict: str
    pairs: Sequence[Pair]
    num_pairs: dict[str, int]
    complete: bool
    odd: Sequence[OddPhotos]
    sizes: Sequence[tuple[tuple[int, int], int]]
    table: str
    written: str


def build_check_page(facts: CheckFacts) -> dict[str, Any]:
    """Build the template's variable ``page``."""
    report = facts.report
    names: dict[str, int] = {}

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    items: list[dict[str, Any]] = []
    pairs = [_pair(pair, items, number) for pair in facts.pairs]
    odd = [
        {
            "title": group.title,
            "text": _some(len(group.photos), group.count),
            "photos": [
                _odd(group, at, photo, items, number) for at, photo in enumerate(group.photos)
            ],
        }
        for group in facts.odd
    ]
    splits = [split.name for split in report.splits]
    drawn = [pair for pair in pairs if pair["first"].url is not None]
    return {
        "title": f"check of {report.data}",
        "data": report.data,
        "headline": _headline(facts),
        "written": facts.written,
        "verdict": facts.verdict,
        "ok": report.ok,
        "findings": finding_rows(report.findings),
        "pairs": drawn,
        "pairs_text": _pairs_text(facts, len(drawn)),
        "table": facts.table,
        "odd": odd,
        "sizes": [
            {"size": f"{w} x {h}", "pixels": w * h, "count": count, "share": count / total}
            for total in [max(report.num_readable, 1)]
            for (w, h), count in facts.sizes
        ],
        "sizes_text": _sizes_text(report),
        "counts": counts_table(splits, report.classes, number),
        "listed": items,
        "class_numbers": [number(name) for name in sorted(row.name for row in report.classes)],
        "kinds": [*PAIR_KINDS.items(), ("odd", "odd or unreadable images")],
        "names": names,
    }


def where_found(kinds: Sequence[str]) -> str:
    """Return the kinds of a pair in words."""
    return " and ".join(PAIR_KINDS[kind] for kind in kinds)


def _headline(facts: CheckFacts) -> str:
    report = facts.report
    held = " (the validation images would be held out)"
    return (
        f"{plural(report.num_images, 'image')} of {plural(len(report.classes), 'class')}"
        f"{held if any(split.held_out for split in report.splits) else ''}"
    )


def _pair(pair: Pair, items: list[dict[str, Any]], number: Callable[[str], int]) -> dict[str, Any]:
    difference = "equal pixels" if pair.bits is None else f"{pair.bits} of 64 bits differ"
    if pair.difference is not None and pair.bits is not None:
        difference = f"pixels differ by {pair.difference:.1%}"
    found = where_found(pair.kinds)
    items.append(
        {
            "photos": (pair.first, pair.second),
            "classes": f"{number(pair.first.name)} {number(pair.second.name)}",
            "kinds": " ".join(pair.kinds),
            "found": f"{'equal' if pair.bits is None else 'alike'} {found}",
            "difference": "" if pair.bits is None else pair.bits,
        }
    )
    return {
        "item": len(items) - 1,
        "first": pair.first,
        "second": pair.second,
        "found": found,
        "serious": "same" not in pair.kinds,
        "difference": difference,
    }


def _odd(
    group: OddPhotos,
    at: int,
    photo: Photo,
    items: list[dict[str, Any]],
    number: Callable[[str], int],
) -> dict[str, Any]:
    note = group.notes[at] if group.notes else ""
    items.append(
        {
            "photos": (photo, None),
            "classes": str(number(photo.name)),
            "kinds": "odd",
            "found": f"{group.title}{f': {note}' if note else ''}",
            "difference": "",
        }
    )
    return {"item": len(items) - 1, "photo": photo, "note": note}


def _some(shown: int, count: int) -> str:
    return "" if shown == count else f"{shown:,} of {count:,} are listed."


def _pairs_text(facts: CheckFacts, drawn: int) -> str:
    total = sum(facts.num_pairs.values())
    if not total:
        return "None: no two images are equal or look alike."
    counts = ", ".join(
        f"{count:,} {PAIR_KINDS[kind]}" for kind, count in facts.num_pairs.items() if count
    )
    text = f"{'' if facts.complete else 'At least '}{plural(total, 'pair')}: {counts}. "
    text += "The closest pair comes first." if drawn == total else f"{drawn:,} are drawn."
    return text


def _sizes_text(report: CheckReport) -> str:
    kinds = (report.formats, report.modes)
    formats, modes = (", ".join(f"{name} {n:,}" for name, n in kind.items()) for kind in kinds)
    text = f"Formats: {formats}. Modes: {modes}."
    if report.sizes is not None:
        ends = (report.sizes.smallest, report.sizes.median, report.sizes.largest)
        small, median, large = (f"{width} x {height}" for width, height in ends)
        text += f" The smallest image has {small} pixels, the median {median}, the largest {large}."
    return text
