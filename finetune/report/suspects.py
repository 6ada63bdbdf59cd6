"""Text output of ``suspects``, and the table of all findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.core.files import exists, refuse_to_replace, write_csv
from finetune.core.text import on_one_line, plural
from finetune.report.layout import (
    Command,
    Document,
    Field,
    Fields,
    Paragraph,
    Table,
    document,
    labelled,
    styled,
)
from finetune.results.suspects import Accuracy, SuspectsReport

HEADER = (
    *("found", "path", "split", "label", "suggested", "score"),
    *("other_path", "other_label", "detail"),
)
"""Columns of the table: ``score`` is the certainty of a label, and else a similarity."""
_LISTED = 5
_FOUND_BY = {"features": "features", "hash": "hash", "both": "features, hash"}
_UNLIKE = {"all": "all", "class": "its class"}
_QUALITY = {
    "dark": "dark",
    "over_exposed": "over-exposed",
    "blurred": "blurred",
    "odd_size": "odd size",
}


def check_table(path: Path, *, overwrite: bool) -> None:
    """Raise if the table cannot be written to a path; called before any work.

    Raises:
        OutputError: The path is a folder, its folder is missing, or it is another file than a table
            of this command and ``overwrite`` is not given.
    """
    refuse_to_replace(path, overwrite=overwrite or _is_table(path))


def _is_table(path: Path) -> bool:
    """Return whether a file is a table of this command."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return exists(path) and file.readline().rstrip("\r\n") == ",".join(HEADER)
    except OSError:
        return False


def write_table(path: Path, report: SuspectsReport) -> None:
    """Write a row for each finding.

    Raises:
        OutputError: The file cannot be written.
    """
    write_csv(path, HEADER, _table_rows(report))


def _table_rows(report: SuspectsReport) -> Iterator[tuple[str, ...]]:
    for one in report.labels:
        near = ", ".join(other.label for other in one.neighbours)
        found = ("label", one.path, one.split, one.given, one.suggested, f"{one.score:.4f}")
        first = one.neighbours[0]
        yield (*found, first.path, first.label, f"nearest: {near}")
    for leak in report.leaks:
        found = ("leak", leak.val, "val", leak.val_label, "", f"{leak.similarity:.4f}")
        yield (*found, leak.train, leak.train_label, f"found by {_FOUND_BY[leak.found_by]}")
    for out in report.outliers:
        found = ("outlier", out.path, out.split, out.label, "", f"{out.similarity:.4f}")
        detail = f"unlike {_UNLIKE[out.kind]}: below {out.limit:.4f}"
        yield (*found, out.nearest.path, out.nearest.label, detail)
    for poor in report.quality:
        yield (poor.kind, poor.path, poor.split, poor.label, "", "", "", "", poor.value)


def render_suspects(report: SuspectsReport) -> Document:
    """Render the numbers of findings, the first few of each kind, and what they mean."""
    return document(
        Paragraph(_heading(report), indent=0),
        Fields(_facts(report)),
        _table(
            ("suspected label", "split", "label", "suggested", "score", "nearest"),
            [
                (
                    on_one_line(one.path),
                    one.split,
                    one.given,
                    one.suggested,
                    f"{one.score:.2f}",
                    ", ".join(near.label for near in one.neighbours),
                )
                for one in report.labels
            ],
            right=(4,),
        ),
        _table(
            ("validation image", "training image like it", "similarity", "found by"),
            [
                (
                    on_one_line(one.val),
                    on_one_line(one.train),
                    f"{one.similarity:.3f}",
                    _FOUND_BY[one.found_by],
                )
                for one in report.leaks
            ],
            right=(2,),
            names=(0, 1),
        ),
        _table(
            ("outlier", "split", "label", "unlike", "similarity", "limit"),
            [
                (
                    on_one_line(one.path),
                    one.split,
                    one.label,
                    _UNLIKE.get(one.kind, one.kind),
                    f"{one.similarity:.2f}",
                    f"{one.limit:.2f}",
                )
                for one in report.outliers
            ],
            right=(4, 5),
        ),
        _table(
            ("poor quality", "split", "label", "found", "measured"),
            [
                (
                    on_one_line(one.path),
                    one.split,
                    one.label,
                    _QUALITY.get(one.kind, one.kind),
                    one.value,
                )
                for one in report.quality
            ],
        ),
        Fields([*labelled("Written", report.files), *_next(report)]),
    )


def _heading(report: SuspectsReport) -> str:
    return (
        f"{report.data}: train {report.num_train:,}, val {report.num_val:,}, "
        f"{plural(len(report.classes), 'class')}"
    )


def _facts(report: SuspectsReport) -> list[Field]:
    facts = [
        Field(
            "Features",
            f"{report.model} with its pretrained weights, which have not seen these labels; not "
            "those of a trained network",
        ),
        Field("Labels", _labels(report)),
    ]
    in_val = sum(one.split == "val" for one in report.labels)
    if in_val:
        share = in_val / report.num_val
        facts.append(
            Field(
                "",
                styled(
                    f"{plural(in_val, 'suspected label')} in val: each wrong one among these "
                    f"{share:.1%} distorts the validation accuracy",
                    "warning",
                ),
            )
        )
    if report.num_not_judged:
        facts.append(
            Field("", f"{plural(report.num_not_judged, 'label')} not judged: alone in the class")
        )
    if report.leak_accuracy is not None:
        facts.append(Field("Leaks", _leaks(report)))
        facts += labelled("Accuracy", _accuracies(report))
    facts.append(Field("Outliers", _outliers(report)))
    facts.append(Field("Quality", _quality(report)))
    if report.features is not None:
        facts.append(Field("Computed", report.features.in_words, detail=True))
    facts.append(Field("Time", f"{report.elapsed_s:.1f} s", detail=True))
    return facts


def _labels(report: SuspectsReport) -> str:
    number = len(report.labels)
    share = number / (report.num_train + report.num_val)
    return (
        f"{number:,} suspected ({share:.1%}); heads that have not seen an image agree with "
        f"{report.accuracy:.1%} of the labels"
        + ("; the score is the probability that a label is wrong" if number else "")
    )


def _leaks(report: SuspectsReport) -> str:
    if not report.leaks:
        return "none: no validation image is nearly the same as a training image"
    counts = Counter(one.found_by for one in report.leaks)
    by_both, by_hash = counts["both"], counts["hash"]
    apart = sum(one.val_label != one.train_label for one in report.leaks)
    return (
        f"{plural(len(report.leaks), 'validation image')} nearly the same as a training image "
        f"({counts['features']:,} by features, {by_hash:,} by hash, {by_both:,} by both)"
        + (f"; {apart:,} with another label" if apart else "")
    )


def _accuracies(report: SuspectsReport) -> list[str]:
    """Return the accuracy with leaks, and without them."""
    accuracy = report.leak_accuracy
    assert accuracy is not None
    found = [f"of a head on all {_accuracy(accuracy.every)}"]
    if report.leaks and accuracy.without.num_images:
        found.append(f"without leaks, on {_accuracy(accuracy.without)}")
    return found


def _accuracy(accuracy: Accuracy) -> str:
    assert accuracy.top1 is not None
    assert accuracy.interval is not None
    low, high = 100 * accuracy.interval.low, 100 * accuracy.interval.high
    number = plural(accuracy.num_images, "validation image")
    return f"{number}: {accuracy.top1:.1%} ({low:.1f} to {high:.1f})"


def _outliers(report: SuspectsReport) -> str:
    counts = Counter(one.kind for one in report.outliers)
    if not counts:
        return "none"
    return f"{counts['all']:,} unlike all images, {counts['class']:,} unlike those of their class"


def _quality(report: SuspectsReport) -> str:
    counts = Counter(one.kind for one in report.quality)
    return ", ".join(
        f"{counts[kind]:,} {word}" for kind, word in _QUALITY.items() if counts[kind]
    ) or ("nothing dark, over-exposed, blurred or of odd size")


def _table(
    header: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    *,
    right: Sequence[int] = (),
    names: Sequence[int] = (0,),
) -> Table | None:
    """Return a table of the first few rows and the number of the others."""
    if not rows:
        return None
    brief = list(rows[:_LISTED])
    if len(rows) > _LISTED:
        brief.append((f"… {len(rows) - _LISTED:,} more", *[""] * (len(header) - 1)))
    return Table(header, rows, right=right, names=names, brief=brief)


def _next(report: SuspectsReport) -> list[Field]:
    return labelled("Next", map(Command, report.next))
