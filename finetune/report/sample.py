"""Text output of ``sample``."""

from __future__ import annotations

from finetune.report.layout import Document, Field, Fields, document
from finetune.report.train import next_facts
from finetune.results.data import SampleSet


def render_sample(result: SampleSet) -> Document:
    """Render what was drawn, and the next commands."""
    counts = f"{result.num_train:,} train, {result.num_val:,} val, {result.num_test:,} test"
    facts = [
        Field("Drawn", f"{result.folder}: {counts}"),
        Field("Classes", ", ".join(result.class_names)),
    ]
    return document(Fields([*facts, *next_facts(result.next)]))
