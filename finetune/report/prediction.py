"""Output of ``predict``, ``export`` and ``report``.

Predictions are written as a table or one JSON document at the end, or streamed as CSV or JSON
lines.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from finetune.checkpoints.run_dir import CONFUSION, CURVES
from finetune.core.text import mib, on_one_line, plural
from finetune.report.tables import table
from finetune.results.evaluation import (
    Agreement,
    ExportResult,
    PageResult,
    Prediction,
    PredictSummary,
    Unreadable,
)

UNSURE = "unsure"
_TOP_OF_EVERY = 5
"""Number of classes in the CSV column ``top`` if every class has its own column."""
Write = Callable[[bytes], None]


class AsTable:
    """Writer of an aligned table, at the end, when the column widths are known."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._rows: list[tuple[str, ...]] = []

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Add a row."""
        if isinstance(answer, Unreadable):
            self._rows.append((on_one_line(answer.path), "unreadable", "", answer.reason))
            return
        said = f"{UNSURE} ({answer.label}?)" if answer.unsure else answer.label
        others = ", ".join(f"{name} {share:.1%}" for name, share in answer.top[1:])
        self._rows.append(
            (on_one_line(answer.path or ""), said, f"{answer.probability:.1%}", others)
        )

    def end(self, _: PredictSummary) -> None:
        """Write the table."""
        header = ("image", "answer", "probability", "then")
        self._write(f"{table(header, self._rows, right=(2,))}\n".encode())


class AsCsv:
    """Writer of one CSV row per image, optionally with one column per class."""

    header = ("path", "answer", "label", "probability", "top", "error")

    def __init__(self, write: Write, *, every_class: bool) -> None:
        self._write = write
        self._every_class = every_class
        self._started = False

    def show(self, names: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Write a row, after the header if it is the first."""
        if not self._started:
            self._started = True
            columns = [f"probability of {name}" for name in names] if self._every_class else []
            self._row([*self.header, *columns])
        if isinstance(answer, Unreadable):
            self._row([answer.path, "unreadable", "", "", "", answer.reason])
            return
        by_name = dict(answer.top)
        best = answer.top[:_TOP_OF_EVERY] if self._every_class else answer.top
        top = json.dumps([[name, round(share, 6)] for name, share in best])
        self._row(
            [
                answer.path or "",
                UNSURE if answer.unsure else answer.label,
                answer.label,
                f"{answer.probability:.6f}",
                top,
                "",
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


def render_export(result: ExportResult) -> str:
    """Render the written files, the expected inputs and the agreement with ``eval``."""
    agreement = result.agreement
    takes = (
        "uint8 pixels (N, 3, H, W) of any size, resized and normalised inside"
        if result.preprocessing
        else "prepared float32 images"
    )
    shapes = ", ".join(f"{height}x{width}" for height, width in agreement.shapes[:4])
    facts = [
        ("Exported", f"{result.model} as {result.format} in {result.elapsed_s:.1f} s"),
        ("Holds", "weights under torchvision's names; README.md has the lines that use them")
        if result.format == "safetensors"
        else ("Takes", f"{takes}; gives probabilities; open sizes: {', '.join(result.dynamic)}"),
        ("Checked", f"on {plural(agreement.num_images, 'photo')} ({shapes}, …)"),
    ]
    for beside in (agreement, result.in_float32):
        if beside is not None:
            facts.append(("", _agreement(beside)))
    written = [("Written" if at == 0 else "", file) for at, file in enumerate(result.files)]
    return table(("", ""), [*facts, *written, ("", mib(result.num_bytes))])


def render_page_result(result: PageResult) -> str:
    """Render the paths and sizes of the written files."""
    files = [("Written" if at == 0 else "", file) for at, file in enumerate(result.files)]
    size = f"{mib(result.num_bytes)} in {result.elapsed_s:.1f} s"
    if not all(file.endswith((CURVES, CONFUSION)) for file in result.files):
        size += "; opens in any browser, offline"
    facts = [*files, ("", size)]
    if result.map_method is not None:
        facts.append(("Map", f"{result.map_method.upper()} of the embeddings"))
    return table(("", ""), facts)


def _agreement(agreement: Agreement) -> str:
    same = "all" if agreement.same_top1 == agreement.num_images else f"{agreement.same_top1:,}"
    return (
        f"{agreement.runtime} beside eval in {agreement.precision}: the same class for {same}; "
        f"probabilities differ by {agreement.max_difference:.2g} at most, "
        f"{agreement.tolerance:g} allowed"
    )


def _json(value: Any, **options: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not valid UTF-8
        text = json.dumps(value, **options)
    return text
