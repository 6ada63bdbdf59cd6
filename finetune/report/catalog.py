"""Text output of ``models`` and ``cache list``."""

from __future__ import annotations

import time

from rich.text import Text

from finetune.core.text import count, mib, plural
from finetune.report.layout import Document, Paragraph, Table, document, joined, styled
from finetune.results.catalog import CacheList, ModelList, ModelRow


def render_models(result: ModelList) -> Document:
    """Render one row per builder."""
    rows = [
        (
            model.name,
            count(model.parameters),
            model.head,
            f"{model.input_size} px",
            _weights(model),
        )
        for model in result.models
    ]
    header = ("name", "weights", "head", "input", "pretrained, and its ImageNet top-1")
    said = f"{plural(len(rows), 'builder')}; use one as model.name, e.g. with init --model"
    return document(Table(header, rows, right=(1, 3), names=(0,)), Paragraph(said))


def _weights(model: ModelRow) -> Text:
    return joined(
        f"{row.name}{'' if row.top1 is None else f' {row.top1:.1%}'}"
        f"{'' if row.input_size == model.input_size else f' at {row.input_size} px'}"
        for row in model.weights
    )


def render_cache(result: CacheList) -> Document:
    """Render one row per feature store, or a summary of the removed stores."""
    total = mib(sum(row.num_bytes for row in result.stores))
    what = plural(len(result.stores), "store")
    if result.removed:
        return document(Paragraph(f"removed {what}, {total}, from {result.folder}"))
    if not result.stores:
        return document(Paragraph(f"no features in {result.folder}"))
    rows = [
        (
            row.network or styled("unknown", "dim"),
            row.cut,
            f"{row.photos:,}",
            mib(row.num_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used_at)),
            styled(row.form, "dim"),
        )
        for row in result.stores
    ]
    header = ("backbone", "frozen up to", "photos", "size", "last used", "compute format")
    return document(
        Table(header, rows, right=(2, 3, 4), names=(0, 1), details=(5,)),
        Paragraph(f"{what}, {total}, in {result.folder}"),
    )
