"""Text output of ``next``."""

from __future__ import annotations

from finetune.core.text import on_one_line, plural
from finetune.report.layout import Document, Field, Fields, Table, document, labelled
from finetune.results.data import NextPhotos


def render_next(result: NextPhotos) -> Document:
    """Render the images to label, the least certain first, and what was left out."""
    rows = [
        (
            on_one_line(photo.path),
            f"{photo.predicted} {photo.probability:.0%}",
            f"{photo.runner_up} {photo.runner_up_probability:.0%}",
            f"{photo.similar - 1:,}",
        )
        for photo in result.photos
    ]
    header = ("image", "answer", "runner-up", "similar")
    facts = [
        Field(
            "Chosen",
            f"{plural(len(result.photos), 'image')} of {result.num_pool:,}: unsure and different, "
            "by k-means weighted by uncertainty",
        )
    ]
    left = [
        f"{plural(number, 'image')} {what}"
        for number, what in (
            (result.num_known, "of the run's own data"),
            (result.near_known, "nearly like one of the run's own data"),
            (result.near_each_other, "nearly like another one of the pool"),
            (len(result.unreadable), "that cannot be read"),
        )
        if number
    ]
    facts += labelled("Left out", left)
    if rows:
        similar = "how many other candidates each stands for"
        facts.append(Field("Similar", similar))
    facts += labelled("Written", result.files)
    if rows:
        then = "label these, add them to the training photos of the run's data, and train again"
        facts.append(Field("Next", then))
    facts += [
        Field("Name", f"{shown} stands for {name}: the sheet's font lacks its letters")
        for shown, name in result.stand_ins.items()
    ]
    return document(Table(header, rows, right=(3,), names=(0,)) if rows else None, Fields(facts))
