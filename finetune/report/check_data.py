"""Text output of ``check-data``."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from finetune.core.text import plural
from finetune.report.tables import table
from finetune.results.check import CheckReport, ClassRow, Finding

_BAR = 30
_MOST_CLASSES = 12
_SHOWN_AT_ENDS = 4
_WIDTH = 96
_EXAMPLES = {"unreadable": 12, "label_conflict": 6, "leak": 6, "duplicate": 4}


def render_check(report: CheckReport) -> str:
    """Render class counts, then each finding with its reason and remedy."""
    parts = [_heading(report), _classes(report), table(("", ""), _facts(report))]
    parts += ["\n".join(_finding(f)) for f in report.findings if f.level != "note"]
    notes = [_note(finding) for finding in report.findings if finding.level == "note"]
    parts += ["\n".join(notes)] if notes else []
    parts.append(f"  {verdict(report)}")
    parts += ["\n".join(f"  Written    {file}" for file in report.files)] if report.files else []
    return "\n\n".join(parts)


def _heading(report: CheckReport) -> str:
    splits = ", ".join(
        f"{split.name} {split.num_images:,}{' (would be held out)' if split.held_out else ''}"
        for split in report.splits
        if split.name != "all"
    )
    what = f"{plural(report.num_images, 'image')} of {plural(len(report.classes), 'class')}"
    return f"{report.data}: {what}{f'; {splits}' if splits else ''}"


def _classes(report: CheckReport) -> str:
    """Render one bar per class; for many classes only the largest and the smallest."""
    several = len(report.splits) > 1
    most = max((row.num_images for row in report.classes), default=0)
    header = ["class", "images", *([s.name for s in report.splits] if several else []), ""]
    rows = [_class_row(row, most, several=several) for row in _chosen(report.classes)]
    right = range(1, 2 + (len(report.splits) if several else 0))
    return table(header, rows, right=list(right))


def _chosen(classes: Sequence[ClassRow]) -> list[ClassRow | int]:
    """Return all classes, or the largest and smallest with the number of classes between them."""
    if len(classes) <= _MOST_CLASSES:
        return list(classes)
    by_count = sorted(classes, key=lambda row: (-row.num_images, row.name))
    between = len(classes) - 2 * _SHOWN_AT_ENDS
    return [*by_count[:_SHOWN_AT_ENDS], between, *by_count[-_SHOWN_AT_ENDS:]]


def _class_row(row: ClassRow | int, most: int, *, several: bool) -> list[str]:
    if isinstance(row, int):
        return [f"… {row:,} more", "", *[""] * several]
    counts = [f"{count:,}" if count else "-" for count in row.counts] if several else []
    bar = "█" * max(1 if row.num_images else 0, round(_BAR * row.num_images / max(most, 1)))
    return [row.name, f"{row.num_images:,}", *counts, bar]


def _facts(report: CheckReport) -> list[tuple[str, str]]:
    facts = []
    if report.sizes is not None:
        small, median, large = (
            f"{w} x {h}"
            for w, h in (report.sizes.smallest, report.sizes.median, report.sizes.largest)
        )
        facts.append(("Sizes", f"median {median}; smallest {small}, largest {large}"))
        facts.append(("Formats", _listed(report.formats)))
        facts.append(("Modes", _listed(report.modes)))
    facts.append(("Checked", _checked(report)))
    return facts


def _checked(report: CheckReport) -> str:
    remembered = f"{report.num_remembered:,} remembered"
    if report.images_per_s is None:
        return remembered
    new = report.num_images - report.num_remembered
    known = f"; {remembered}" if report.num_remembered else ""
    speed = f"{new / report.images_per_s:.1f} s, {report.images_per_s:,.0f} images/s"
    return f"{new:,} decoded in {speed}{known}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _finding(finding: Finding) -> Iterator[str]:
    yield f"  {finding.level:<9}  {finding.title}"
    most = _EXAMPLES.get(finding.kind, 3)
    for example in finding.examples[:most]:
        yield f"             {example}"
    more = finding.count - most
    if more > 0 and finding.examples:
        yield f"             … and {more:,} more; --json lists them"
    text = f"{finding.why} {finding.todo}".strip()
    yield from (f"             {line}" for line in textwrap.wrap(text, _WIDTH - 13))


def _note(finding: Finding) -> str:
    """Render a note on one line."""
    some = ", ".join(finding.examples[:2])
    more = ", …" if finding.count > 2 else ""
    return f"  note       {finding.title}{f': {some}{more}' if some else ''}"


def verdict(report: CheckReport) -> str:
    """Return the numbers of errors and warnings, and what they mean, in one sentence."""
    counts = Counter(finding.level for finding in report.findings)
    listed = " and ".join(
        plural(counts[level], level) for level in ("error", "warning") if counts[level]
    )
    if not listed:
        return "Nothing wrong was found."
    if report.ok:
        return f"{listed}: the data can be trained on."
    return f"{listed}: training on this data, or its figures, would be wrong."
