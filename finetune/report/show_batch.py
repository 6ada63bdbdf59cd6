"""Text output of ``show-batch``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finetune.core.text import plural
from finetune.report.layout import Document, Field, Fields, document
from finetune.results.data import ShownBatch, ShownImage


def render_shown_batch(result: ShownBatch) -> Document:
    """Render the path and the contents of the contact sheet."""
    size = f"{result.input_size} x {result.input_size} pixels"
    scale = f", each {result.pixels_each:g} wide here" if result.pixels_each > 1 else ""
    smaller = ", made smaller here" if result.pixels_each < 1 else ""
    rows: list[Field | tuple[str, str]] = [
        ("Written", f"{result.file}, {result.width} x {result.height} pixels"),
        ("Network", f"{result.model} sees {size}{scale}{smaller}; data.fit {result.fit}"),
        (
            "Training",
            f"the first {len(result.training)} of {result.num_train:,} images in epoch "
            f"{result.epoch}: {result.augmentation}",
        ),
        ("", _classes(result.training)),
        *_paths(result.training),
        (
            "Validation",
            f"{len(result.validation)} of {result.num_val:,} images, evenly spaced; "
            "no augmentation",
        ),
        ("", _classes(result.validation)),
        *_paths(result.validation),
        *(
            ("Name", f"{shown} stands for {name}: the sheet's font lacks its letters")
            for shown, name in result.stand_ins.items()
        ),
    ]
    return document(Fields(rows))


def _paths(images: Sequence[ShownImage]) -> list[Field]:
    """Return the file of each image, in the order of the sheet."""
    return [Field("", image.path, detail=True) for image in images]


def _classes(images: Sequence[ShownImage]) -> str:
    counts = Counter(name for image in images for name in image.classes)
    some = [f"{name} {count}" for name, count in counts.most_common(8)]
    more = len(counts) - len(some)
    mixed = ", in mixtures" if any(len(image.classes) > 1 for image in images) else ""
    others = f" and {plural(more, 'more class')}" if more else ""
    return f"{', '.join(some)}{others}{mixed}"
