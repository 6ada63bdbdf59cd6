"""Text output of ``check-data``."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune.core.text import plural
from finetune.report.layout import (
    Bar,
    Cell,
    Command,
    Document,
    Field,
    Fields,
    Paragraph,
    Part,
    Table,
    document,
    joined,
    labelled,
    styled,
)
from finetune.results.check import CheckReport, ClassRow, Finding

_LEAST_BAR = 1 / 30
_MOST_CLASSES = 12
_SHOWN_AT_ENDS = 4
_LEVEL = len("warning") + 4
"""Width of the column of levels."""
_EXAMPLES = {"unreadable": 12, "label_conflict": 6, "leak": 6, "duplicate": 4}


def render_check(report: CheckReport, config: str | None = None) -> Document:
    """Render the class counts, each finding with its reason and remedy, and the verdict.

    Args:
        report: Result of the check.
        config: Config file that named the data, for the next command.
    """
    findings = [_finding(one) for one in report.findings if one.level != "note"]
    notes = [_note(finding) for finding in report.findings if finding.level == "note"]
    return document(
        Paragraph(_heading(report), indent=0),
        _classes(report),
        Fields(_facts(report)),
        *findings,
        notes or None,
        [_verdict(report), Fields([*_written(report), *_next(report, config)])],
    )


def _heading(report: CheckReport) -> str:
    splits = ", ".join(
        f"{split.name} {split.num_images:,}{' (would be held out)' if split.held_out else ''}"
        for split in report.splits
        if split.name != "all"
    )
    what = f"{plural(report.num_images, 'image')} of {plural(len(report.classes), 'class')}"
    return f"{report.data}: {what}{f'; {splits}' if splits else ''}"


def _classes(report: CheckReport) -> Table:
    """Return one bar per class; for many classes only the largest and the smallest in brief."""
    several = len(report.splits) > 1
    number = len(report.splits) if several else 0
    most = max((row.num_images for row in report.classes), default=0)
    header = ["class", "images", *([s.name for s in report.splits] if several else []), ""]
    rows = [_class_row(row, most, several=number) for row in report.classes]
    brief = [_class_row(row, most, several=number) for row in _chosen(report.classes)]
    return Table(header, rows, right=range(1, 2 + number), names=(0,), brief=brief)


def _chosen(classes: Sequence[ClassRow]) -> list[ClassRow | int]:
    """Return all classes, or the largest and smallest with the number of classes between them."""
    if len(classes) <= _MOST_CLASSES:
        return list(classes)
    by_count = sorted(classes, key=lambda row: (-row.num_images, row.name))
    between = len(classes) - 2 * _SHOWN_AT_ENDS
    return [*by_count[:_SHOWN_AT_ENDS], between, *by_count[-_SHOWN_AT_ENDS:]]


def _class_row(row: ClassRow | int, most: int, *, several: int) -> list[Cell]:
    """Return a row of the table.

    Args:
        several: Number of columns of splits.
    """
    if isinstance(row, int):
        return [styled(f"… {row:,} more", "dim"), *[""] * (several + 2)]
    counts = [f"{count:,}" if count else "-" for count in row.counts] if several else []
    share = row.num_images / max(most, 1)
    return [row.name, f"{row.num_images:,}", *counts, Bar(max(share, _LEAST_BAR if share else 0))]


def _facts(report: CheckReport) -> list[Field]:
    facts: list[Field] = []
    if report.sizes is not None:
        small, median, large = (
            f"{w} x {h}"
            for w, h in (report.sizes.smallest, report.sizes.median, report.sizes.largest)
        )
        facts.append(Field("Sizes", f"median {median}; smallest {small}, largest {large}"))
        facts.append(Field("Formats", _listed(report.formats)))
        facts.append(Field("Modes", _listed(report.modes)))
    facts.append(Field("Checked", _checked(report), detail=True))
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


def _finding(finding: Finding) -> list[Part]:
    most = _EXAMPLES.get(finding.kind, 3)
    level = styled(f"{finding.level:<{_LEVEL}}", finding.level)
    examples = [Paragraph(one, indent=_LEVEL + 2) for one in finding.examples[:most]]
    more = finding.count - most
    if more > 0 and finding.examples:
        rest = f"… and {more:,} more; --json lists them"
        examples.append(Paragraph(styled(rest, "dim"), indent=_LEVEL + 2))
    text = f"{finding.why} {finding.todo}".strip()
    return [
        Paragraph(joined([level, finding.title], ""), hanging=_LEVEL),
        *examples,
        Paragraph(text, indent=_LEVEL + 2, hanging=0),
    ]


def _note(finding: Finding) -> Paragraph:
    """Render a note in one paragraph."""
    some = ", ".join(finding.examples[:2])
    more = ", …" if finding.count > 2 else ""
    level = styled(f"{'note':<{_LEVEL}}", "dim")
    return Paragraph(
        joined([level, f"{finding.title}{f': {some}{more}' if some else ''}"], ""), hanging=_LEVEL
    )


def verdict(report: CheckReport) -> str:
    """Return the numbers of errors and warnings, and what they mean, in one sentence."""
    counts = Counter(finding.level for finding in report.findings)
    listed = " and ".join(
        plural(counts[level], level) for level in ("error", "warning") if counts[level]
    )
    if not listed:
        return (
            "No broken files, copies or leaks were found. Whether labels are right is not checked."
        )
    if report.ok:
        return f"{listed}: the data can be trained on."
    return f"{listed}: training on this data, or its figures, would be wrong."


def _verdict(report: CheckReport) -> Paragraph:
    is_warned = any(finding.level == "warning" for finding in report.findings)
    style = "error" if not report.ok else "warning" if is_warned else "good"
    return Paragraph(styled(verdict(report), style))


def _written(report: CheckReport) -> list[Field]:
    return labelled("Written", report.files)


def _next(report: CheckReport, config: str | None) -> list[Field]:
    if not report.ok:
        return []
    if config is not None:
        return [Field("Next", Command(f"finetune train {shlex.quote(config)}"))]
    name = re.sub(r"\W+", "-", Path(report.data).stem).strip("-") or "config"
    command = f"finetune init {shlex.quote(report.data)} --output {name}.yaml"
    return [Field("Next", Command(command))]
