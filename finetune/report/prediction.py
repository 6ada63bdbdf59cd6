"""Predictions as a table, as CSV or as JSON lines, the last two as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from finetune.errors import on_one_line
from finetune.eval_results import (
    Agreement,
    ExportResult,
    PageResult,
    Prediction,
    PredictSummary,
    Unreadable,
)
from finetune.report.tables import mib, plural, table
from finetune.run_folder import CONFUSION, CURVES

UNSURE = "unsure"
_TOP_OF_EVERY = 5
"""Classes in the column of the best ones, where every class has one of its own."""
Write = Callable[[bytes], None]


class AsTable:
    """Aligned columns, at the end: their widths are known only then."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._rows: list[tuple[str, ...]] = []

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Keep a row."""
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
    """A row an image; every class in a column of its own where all were asked for."""

    header = ("path", "answer", "label", "probability", "top", "error")

    def __init__(self, write: Write, *, every_class: bool) -> None:
        self._write = write
        self._every_class = every_class
        self._started = False

    def show(self, names: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Write a row."""
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
        """Nothing is left."""

    def _row(self, fields: Sequence[str]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(fields)
        # A file name may hold bytes that are not UTF-8: they leave as they came.
        self._write(line.getvalue().encode("utf-8", "surrogateescape"))


class AsJsonLines:
    """An object a line."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Write a line."""
        self._write(f"{_json(as_object(answer))}\n".encode())

    def end(self, _: PredictSummary) -> None:
        """Nothing is left."""


class AsJson:
    """One document: the predictions, and how the work went."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._answers: list[dict[str, Any]] = []

    def show(self, _: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Keep an answer."""
        self._answers.append(as_object(answer))

    def end(self, summary: PredictSummary) -> None:
        """Write the document."""
        document = {"predictions": self._answers} | asdict(summary)
        self._write(f"{_json(document, indent=2)}\n".encode())


def as_object(answer: Prediction | Unreadable) -> dict[str, Any]:
    """An answer as JSON has it."""
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
    """How the work went, in a line."""
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
    """What was written, what it takes, and how well it agrees with ``eval``."""
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
    """Where the page is."""
    files = [("Written" if at == 0 else "", file) for at, file in enumerate(result.files)]
    size = f"{mib(result.num_bytes)} in {result.elapsed_s:.1f} s"
    if not all(file.endswith((CURVES, CONFUSION)) for file in result.files):
        size += "; opens in any browser, offline"
    return table(("", ""), [*files, ("", size)])


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
    except UnicodeEncodeError:  # a file name with bytes that are not UTF-8
        text = json.dumps(value, **options)
    return text
