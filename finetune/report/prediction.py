"""Output of ``predict``, ``export`` and ``report``.

Predictions are written as a table or one JSON document at the end, or streamed as CSV or JSON
lines.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.checkpoints.run_dir import CONFUSION, CURVES
from finetune.core.text import first_few, mib, on_one_line, plural
from finetune.report.layout import (
    Cell,
    Document,
    Field,
    Fields,
    Paragraph,
    Table,
    document,
    labelled,
    styled,
)
from finetune.results.evaluation import (
    Agreement,
    ExportResult,
    PageResult,
    Prediction,
    PredictSummary,
    SortedInto,
    Unreadable,
)

UNSURE, UNLIKE = "unsure", "unlike"
_MOST_IN_SET = 4
"""Number of classes of a prediction set that the table names."""
_MOST_COUNTED = 12
"""Number of classes whose images are counted by name."""
Write = Callable[[bytes], None]


class AsTable:
    """Writer of an aligned table and counts by class, at the end, when all answers are known."""

    def __init__(self, show: Callable[[Document], None]) -> None:
        self._show = show
        self._answers: list[Prediction | Unreadable] = []

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Add a row."""
        self._answers.append(answer)

    def end(self, summary: PredictSummary) -> None:
        """Write the table."""
        self._show(render_predictions(self._answers, summary))


def render_predictions(
    answers: Sequence[Prediction | Unreadable], summary: PredictSummary
) -> Document:
    """Render one row per image, and the number of images of each class.

    Folders that all paths have in common are named once, above the table.
    """
    paths = [on_one_line(answer.path or "") for answer in answers]
    folder = _common_folder(paths)
    rows = [
        (path.removeprefix(folder), *_answer(answer))
        for path, answer in zip(paths, answers, strict=True)
    ]
    # Warnings have the reasons why files cannot be read.
    brief = [
        (*row[:3], "") if isinstance(answer, Unreadable) else row
        for row, answer in zip(rows, answers, strict=True)
    ]
    last = "runner-up" if summary.coverage is None else f"{summary.coverage:.4g} set"
    header = ("image", "answer", "probability", last)
    return document(
        Paragraph(f"in {folder}", hanging=2) if folder else None,
        Table(header, rows, right=(2,), names=(0, 1, 3), brief=brief),
        Fields(
            [
                Field("Answers", _counted(answers)),
                *_limits(summary),
                Field("Images", render_predict(summary)),
                *_sorted_into(summary.sorted_into),
            ]
        ),
    )


def _sorted_into(made: SortedInto | None) -> list[Field]:
    if made is None:
        return []
    number = plural(sum(made.counts.values()), "image")
    how = "linked" if made.links else "copied, since links are not possible here,"
    where = plural(len(made.counts), "folder")
    return [
        Field("Sorted", f"{number} {how} in {where} of {made.folder}"),
        *(
            Field("", f"{folder} stands for {name}, which cannot be the name of a folder")
            for folder, name in made.renamed.items()
        ),
    ]


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that several paths have in common, with a slash at its end."""
    if len(paths) < 2:
        return ""
    try:
        folder = os.path.commonpath([Path(path).parent for path in paths])
    except ValueError:  # some are absolute
        return ""
    return f"{folder}{os.sep}" if folder.strip(os.sep) else ""


def _answer(answer: Prediction | Unreadable) -> tuple[Cell, ...]:
    if isinstance(answer, Unreadable):
        return styled("unreadable", "error"), "", answer.reason
    others = " ".join(f"{name} {share:.1%}" for name, share in answer.top[1:])
    if answer.prediction_set is not None:
        others = first_few(answer.prediction_set, most=_MOST_IN_SET)
    said: Cell = answer.label
    if _said(answer) != answer.label:
        said = styled(f"{_said(answer)} ({answer.label}?)", "warning")
    return said, f"{answer.probability:.1%}", styled(others, "dim")


def _said(answer: Prediction) -> str:
    """Return the answer to one image, in a word."""
    if answer.unlike:
        return UNLIKE
    return UNSURE if answer.unsure else answer.label


def _limits(summary: PredictSummary) -> list[Field]:
    """Return what the marks and sets mean, and the photos that they rest on."""
    if summary.calibration_images is None:
        return []
    facts = []
    on = f"limit set on {plural(summary.calibration_images, 'validation photo')}"
    assert summary.false_alarms is not None
    rate = f"{summary.false_alarms * 100:.3g}%"
    if summary.num_unlike is None:
        facts.append(
            Field(
                "Unlike",
                f"not marked: {plural(summary.calibration_images, 'validation photo')} are too few "
                f"for a limit that {rate} of photos like the training photos exceed",
            )
        )
    else:
        of = plural(summary.num_images, "image")
        facts.append(
            Field(
                "Unlike",
                f"{summary.num_unlike:,} of {of} ({summary.num_unlike / summary.num_images:.1%}); "
                f"of photos like the training photos about {rate} are ({on})",
            )
        )
    if summary.coverage is not None:
        facts.append(
            Field(
                "Sets",
                f"{summary.mean_set_size:.2f} classes on average; of photos like the training "
                f"photos at least {summary.coverage * 100:.4g}% have their class in the set",
            )
        )
    return facts


def _counted(answers: Sequence[Prediction | Unreadable]) -> str:
    """Return how many images have each answer, most frequent first."""
    counts = Counter(_said(answer) for answer in answers if isinstance(answer, Prediction))
    named = [f"{name} {count:,}" for name, count in counts.most_common()]
    return first_few(named, most=_MOST_COUNTED)


class AsCsv:
    """Writer of one CSV row per image.

    The columns ``label`` and ``probability`` are followed by ``class_2``, ``probability_2`` and so
    on for the next classes; ``error``; ``unlike``, ``distance`` and ``set``, whose classes are
    separated by ``|``; and, if asked for, one column for each class.

    Args:
        others: Number of next classes.
    """

    header = ("path", "answer", "label", "probability")
    limits = ("unlike", "distance", "set")

    def __init__(self, write: Write, *, others: int, every_class: bool) -> None:
        self._write = write
        self._others = 0 if every_class else others
        self._every_class = every_class
        self._started = False

    def show(self, names: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Write a row, after the header if it is the first."""
        others = min(self._others, len(names) - 1)
        if not self._started:
            self._started = True
            places = range(2, others + 2)
            next_classes = [f"{key}_{at}" for at in places for key in ("class", "probability")]
            columns = [f"probability of {name}" for name in names] if self._every_class else []
            self._row([*self.header, *next_classes, "error", *self.limits, *columns])
        if isinstance(answer, Unreadable):
            empty = [""] * (2 + 2 * others)
            self._row([answer.path, "unreadable", *empty, answer.reason, *[""] * len(self.limits)])
            return
        by_name = dict(answer.top)
        following = answer.top[1 : others + 1]
        self._row(
            [
                answer.path or "",
                UNSURE if answer.unsure else answer.label,
                answer.label,
                f"{answer.probability:.6f}",
                *(cell for name, share in following for cell in (name, f"{share:.6f}")),
                "",
                "" if answer.unlike is None else str(answer.unlike).lower(),
                "" if answer.distance is None else f"{answer.distance:.4f}",
                "|".join(answer.prediction_set or ()),
                *([f"{by_name[name]:.6f}" for name in names] if self._every_class else []),
            ]
        )

    def end(self, _: PredictSummary) -> None:
        """Do nothing: all rows are already written."""

    def _row(self, fields: Sequence[str]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(fields)
        # File names may contain bytes that are not valid UTF-8, which are written unchanged.
        self._write(line.getvalue().encode("utf-8", "surrogateescape"))


class AsJsonLines:
    """Writer of one JSON object per line."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Write one line."""
        self._write(f"{_json(as_object(answer))}\n".encode())

    def end(self, _: PredictSummary) -> None:
        """Do nothing: all rows are already written."""


class AsJson:
    """Writer of one JSON document with the predictions and the summary."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._answers: list[dict[str, Any]] = []

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Add a prediction."""
        self._answers.append(as_object(answer))

    def end(self, summary: PredictSummary) -> None:
        """Write the document."""
        document = {"predictions": self._answers} | asdict(summary)
        self._write(f"{_json(document, indent=2)}\n".encode())


def as_object(answer: Prediction | Unreadable) -> dict[str, Any]:
    """Convert a prediction to its JSON object."""
    if isinstance(answer, Unreadable):
        return {"path": answer.path, "error": answer.reason}
    return {
        "path": answer.path,
        "answer": UNSURE if answer.unsure else answer.label,
        "label": answer.label,
        "probability": answer.probability,
        "top": [{"label": name, "probability": share} for name, share in answer.top],
        "unlike": answer.unlike,
        "distance": answer.distance,
        "set": answer.prediction_set,
    }


def render_predict(summary: PredictSummary) -> str:
    """Render the summary on one line."""
    parts = [
        f"{plural(summary.num_images, 'image')} in {summary.elapsed_s:.2f} s, "
        f"{summary.images_per_s:,.0f} images/s"
    ]
    if summary.num_unsure:
        parts.append(f"{summary.num_unsure:,} unsure")
    if summary.unreadable:
        parts.append(f"{len(summary.unreadable):,} cannot be read")
    return "; ".join(parts)


def render_export(result: ExportResult) -> Document:
    """Render the written files, the expected inputs and the agreement with ``eval``."""
    agreement = result.agreement
    takes = (
        "uint8 pixels (N, 3, H, W) of any size, resized and normalised inside"
        if result.preprocessing
        else "prepared float32 images"
    )
    shapes = ", ".join(f"{height}x{width}" for height, width in agreement.shapes[:4])
    facts = [
        Field("Exported", f"{result.model} as {result.format} in {result.elapsed_s:.1f} s"),
        Field("Holds", "weights under torchvision's names; README.md has the lines that use them")
        if result.format == "safetensors"
        else Field(
            "Takes", f"{takes}; gives probabilities; open sizes: {', '.join(result.dynamic)}"
        ),
        Field("Checked", f"on {plural(agreement.num_images, 'photo')} ({shapes}, …)"),
    ]
    for beside in (agreement, result.in_float32):
        if beside is not None:
            facts.append(Field("", _agreement(beside)))
    facts += labelled("Written", result.files)
    return document(Fields([*facts, Field("", mib(result.num_bytes))]))


def render_page_result(result: PageResult) -> Document:
    """Render the paths and sizes of the written files."""
    facts = labelled("Written", result.files)
    size = f"{mib(result.num_bytes)} in {result.elapsed_s:.1f} s"
    if not all(file.endswith((CURVES, CONFUSION)) for file in result.files):
        size += "; opens in any browser, offline"
    facts.append(Field("", size))
    if result.map_method is not None:
        facts.append(Field("Map", f"{result.map_method.upper()} of the embeddings"))
    return document(Fields(facts))


def _agreement(agreement: Agreement) -> str:
    same = "all" if agreement.same_top1 == agreement.num_images else f"{agreement.same_top1:,}"
    distances = ""
    if agreement.max_distance_difference is not None:
        distances = f"; distances to the training photos by {agreement.max_distance_difference:.2g}"
    return (
        f"{agreement.runtime} beside eval in {agreement.precision}: the same class for {same}; "
        f"probabilities differ by {agreement.max_difference:.2g} at most, "
        f"{agreement.tolerance:g} allowed{distances}"
    )


def _json(value: Any, **options: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not valid UTF-8
        text = json.dumps(value, **options)
    return text
