"""Values of the template of the page of ``suspects``, on which a person decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.core.text import plural
from finetune.results.suspects import (
    Leak,
    Neighbour,
    Outlier,
    QualityFinding,
    SuspectedLabel,
    SuspectsReport,
)

KINDS = {
    "label": "suspected labels",
    "leak": "near copies in training",
    "outlier": "outliers",
    "quality": "poor quality",
}
"""Kinds of entries, as in the filter of the page."""
DRAWN = {"label": 150, "leak": 60, "outlier": 40, "quality": 40}
"""Maximum number of drawn entries of each kind; a page of them stays below 10 MB."""
LISTED = 5_000
"""Maximum number of entries of each kind in the page's list."""
QUALITY = {
    "dark": "dark",
    "over_exposed": "over-exposed",
    "blurred": "blurred",
    "odd_size": "of odd size",
}
"""Kinds of findings on pixels, in words."""

Url = Callable[[str], str | None]


@dataclass(frozen=True)
class SuspectsFacts:
    """Input of the page of ``suspects``.

    Attributes:
        photos: Data URL of the picture of each drawn photo, by its path.
        small: Data URL of the small picture of each drawn neighbour, by its path.
        table: Name of the file of all suspected labels.
        written: Date of the page.
    """

    report: SuspectsReport
    photos: Mapping[str, str]
    small: Mapping[str, str]
    table: str
    written: str


def drawn_paths(report: SuspectsReport) -> tuple[list[str], list[str]]:
    """Return the paths of the photos that the page draws large, and of those it draws small."""
    large = [one.path for one in report.labels[: DRAWN["label"]]]
    large += [path for one in report.leaks[: DRAWN["leak"]] for path in (one.val, one.train)]
    large += [one.path for one in report.outliers[: DRAWN["outlier"]]]
    large += [one.path for one in report.quality[: DRAWN["quality"]]]
    small = [near.path for one in report.labels[: DRAWN["label"]] for near in one.neighbours]
    small += [one.nearest.path for one in report.outliers[: DRAWN["outlier"]]]
    return list(dict.fromkeys(large)), list(dict.fromkeys(small))


def build_suspects_page(facts: SuspectsFacts) -> dict[str, Any]:
    """Build the template's variable ``page``."""
    report = facts.report
    names: dict[str, int] = {}

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    for name in report.classes:
        number(name)
    items: list[dict[str, Any]] = []
    sections = {
        "labels": [_label(one, facts, items, number) for one in report.labels[:LISTED]],
        "leaks": [_leak(one, facts, items, number) for one in report.leaks[:LISTED]],
        "outliers": [_outlier(one, facts, items, number) for one in report.outliers[:LISTED]],
        "quality": [_quality(one, facts, items, number) for one in report.quality[:LISTED]],
    }
    drawn = {
        key: [entry for entry in entries if entry["url"] is not None]
        for key, entries in sections.items()
    }
    return {
        "title": f"suspects of {report.data}",
        "data": report.data,
        "headline": _headline(report),
        "written": facts.written,
        **drawn,
        "texts": {
            "labels": _labels_text(report, len(drawn["labels"]), facts.table),
            "leaks": _leaks_text(report, len(drawn["leaks"])),
            "outliers": _some(len(drawn["outliers"]), len(report.outliers)),
            "quality": _some(len(drawn["quality"]), len(report.quality)),
        },
        "counts": {
            "labels": len(report.labels),
            "leaks": len(report.leaks),
            "outliers": len(report.outliers),
            "quality": len(report.quality),
        },
        "listed": items,
        "class_numbers": [number(name) for name in sorted(report.classes)],
        "decided": report.decided,
        "kinds": [*KINDS.items(), ("undecided", "not decided yet"), ("decided", "decided")],
        "names": names,
    }


def _headline(report: SuspectsReport) -> str:
    return (
        f"{plural(report.num_train, 'training image')} and "
        f"{plural(report.num_val, 'validation image')} of "
        f"{plural(len(report.classes), 'class')}, judged with the features of {report.model}"
    )


@dataclass(frozen=True)
class _Entry:
    """Row of the page's list."""

    kind: str
    found: str
    path: str
    split: str
    given: str
    suggested: str = ""
    score: float | None = None


def _listed(entry: _Entry, items: list[dict[str, Any]], number: Callable[[str], int]) -> int:
    """Append an entry to the page's list, and return its position."""
    items.append(
        {
            **vars(entry),
            "score": "" if entry.score is None else f"{entry.score:.4f}",
            "classes": f"{number(entry.given)} {number(entry.suggested or entry.given)}",
        }
    )
    return len(items) - 1


def _label(
    one: SuspectedLabel,
    facts: SuspectsFacts,
    items: list[dict[str, Any]],
    number: Callable[[str], int],
) -> dict[str, Any]:
    at = _listed(
        _Entry("label", "label", one.path, one.split, one.given, one.suggested, one.score),
        items,
        number,
    )
    return {
        "item": at,
        "path": one.path,
        "split": one.split,
        "given": one.given,
        "suggested": one.suggested,
        "suggested_at": number(one.suggested),
        "sure": f"wrong with probability {one.score:.0%}; heads say "
        f"{one.probability_suggested:.0%} {one.suggested}, "
        f"{one.probability_given:.0%} {one.given}",
        "url": facts.photos.get(one.path),
        "neighbours": [_neighbour(near, facts) for near in one.neighbours],
    }


def _neighbour(near: Neighbour, facts: SuspectsFacts) -> dict[str, Any]:
    return {
        "path": near.path,
        "label": near.label,
        "text": f"{near.label}, similarity {near.similarity:.2f}: {near.path}",
        "url": facts.small.get(near.path),
    }


def _leak(
    one: Leak, facts: SuspectsFacts, items: list[dict[str, Any]], number: Callable[[str], int]
) -> dict[str, Any]:
    found = f"near copy of {one.train}"
    entry = _Entry("leak", found, one.val, "val", one.val_label, score=one.similarity)
    at = _listed(entry, items, number)
    by = {"features": "features", "hash": "perceptual hash", "both": "features and hash"}
    return {
        "item": at,
        "val": one.val,
        "train": one.train,
        "val_label": one.val_label,
        "train_label": one.train_label,
        "differ": one.val_label != one.train_label,
        "similarity": f"{one.similarity:.3f}",
        "found_by": by.get(one.found_by, one.found_by),
        "url": facts.photos.get(one.val),
        "train_url": facts.photos.get(one.train),
    }


def _outlier(
    one: Outlier, facts: SuspectsFacts, items: list[dict[str, Any]], number: Callable[[str], int]
) -> dict[str, Any]:
    found = "unlike all others" if one.kind == "all" else f"unlike others of {one.label}"
    entry = _Entry("outlier", found, one.path, one.split, one.label, score=one.similarity)
    at = _listed(entry, items, number)
    return {
        "item": at,
        "path": one.path,
        "split": one.split,
        "label": one.label,
        "found": found,
        "url": facts.photos.get(one.path),
        "nearest": _neighbour(one.nearest, facts),
    }


def _quality(
    one: QualityFinding,
    facts: SuspectsFacts,
    items: list[dict[str, Any]],
    number: Callable[[str], int],
) -> dict[str, Any]:
    found = QUALITY.get(one.kind, one.kind)
    at = _listed(_Entry("quality", found, one.path, one.split, one.label), items, number)
    return {
        "item": at,
        "path": one.path,
        "split": one.split,
        "label": one.label,
        "found": f"{found}: {one.value}",
        "url": facts.photos.get(one.path),
    }


def _labels_text(report: SuspectsReport, drawn: int, table: str) -> str:
    if not report.labels:
        return "None: heads that have not seen a photo agree with its label wherever they are sure."
    text = (
        "Heads that were fitted without the photo are surer of another class. The label that is "
        "wrong with the highest probability comes first; below each are the three photos that are "
        "most like it. Not every wrong label is found."
    )
    if drawn < len(report.labels):
        text += f" {drawn:,} of {len(report.labels):,} are drawn; {table} lists all."
    return text


def _leaks_text(report: SuspectsReport, drawn: int) -> str:
    if not report.leaks:
        return "None: no validation photo is nearly the same as a training photo."
    text = "A validation photo that shows what a training photo shows makes the accuracy too high."
    accuracy = report.leak_accuracy
    if accuracy is not None and accuracy.every.top1 is not None:
        text += f" Accuracy of a head on all validation photos: {accuracy.every.top1:.2%}"
        if accuracy.without.top1 is not None:
            text += f"; without these {accuracy.leaked.num_images:,}: {accuracy.without.top1:.2%}"
        text += "."
    return f"{text} {_some(drawn, len(report.leaks))}".rstrip()


def _some(drawn: int, count: int) -> str:
    return "" if drawn == count else f"{drawn:,} of {count:,} are drawn."


def printable(report: SuspectsReport, shown: Callable[[str], str]) -> SuspectsReport:
    """Return the report with all paths made valid UTF-8 by ``shown``."""

    def near(one: Neighbour) -> Neighbour:
        return replace(one, path=shown(one.path))

    def paths(entries: Sequence[Any], *keys: str) -> tuple[Any, ...]:
        return tuple(
            replace(one, **{key: shown(getattr(one, key)) for key in keys}) for one in entries
        )

    return replace(
        report,
        data=shown(report.data),
        labels=tuple(
            replace(one, path=shown(one.path), neighbours=tuple(map(near, one.neighbours)))
            for one in report.labels
        ),
        leaks=paths(report.leaks, "val", "train"),
        outliers=tuple(
            replace(one, path=shown(one.path), nearest=near(one.nearest)) for one in report.outliers
        ),
        quality=paths(report.quality, "path"),
    )
