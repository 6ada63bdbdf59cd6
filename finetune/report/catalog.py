"""Text output of ``models`` and ``cache list``."""

from __future__ import annotations

import time

from finetune.core.text import count, mib, plural
from finetune.report.tables import table
from finetune.results.catalog import CacheList, ModelList


def render_models(result: ModelList) -> str:
    """Render one line per builder."""
    rows = []
    for model in result.models:
        weights = ", ".join(
            f"{row.name}{'' if row.top1 is None else f' {row.top1:.1%}'}"
            f"{'' if row.input_size == model.input_size else f' at {row.input_size} px'}"
            for row in model.weights
        )
        rows.append(
            (model.name, count(model.parameters), model.head, f"{model.input_size} px", weights)
        )
    listing = table(
        ("name", "parameters", "head", "input", "weights and their ImageNet top-1"),
        rows,
        right=(1, 3),
    )
    return f"{listing}\n\n  {plural(len(rows), 'builder')}; use one as model.name"


def render_cache(result: CacheList) -> str:
    """Render one line per feature store, or a summary of the removed stores."""
    total = mib(sum(row.num_bytes for row in result.stores))
    what = plural(len(result.stores), "store")
    if result.removed:
        return f"  removed {what}, {total}, from {result.folder}"
    if not result.stores:
        return f"  no features in {result.folder}"
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used_at)),
            row.network,
            row.cut,
            f"{row.photos:,}",
            mib(row.num_bytes),
            row.form,
        )
        for row in result.stores
    ]
    listing = table(
        ("last used", "network", "cut after", "photos", "size", "compute format"),
        rows,
        right=(3, 4),
    )
    return f"{listing}\n\n  {what}, {total}, in {result.folder}"
