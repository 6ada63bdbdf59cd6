"""``finetune next``: choose the unlabelled images to label first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import Metadata
from finetune.commands.embed import splits_of_run
from finetune.commands.predict import list_images, refuse_swapped, report_unreadable
from finetune.commands.show_batch import image_of
from finetune.core.errors import ConfigError, DataError
from finetune.core.files import refuse_to_replace, write_csv
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.seeding import seed_for
from finetune.core.text import plural
from finetune.data.levels import warn_of_levels
from finetune.data.loading.decoding import read_photo
from finetune.data.loading.transforms import build_fit
from finetune.data.sources.known_photos import UNKNOWN, KnownPhotos
from finetune.inference.calibration import probabilities
from finetune.inference.next_photos import Choice, choose_photos, margins
from finetune.inference.prediction_rows import best_classes
from finetune.inference.predictor import Predictor, open_run
from finetune.report.contact_sheet import (
    NEXT_BY,
    Cell,
    Section,
    check_output,
    draw_sheet,
    save_sheet,
    stand_ins,
)
from finetune.results.data import NextPhoto, NextPhotos

HEADER = (
    *("path", "predicted", "probability", "runner_up", "runner_up_probability"),
    *("margin", "reason"),
)
"""Columns of the CSV file."""
_COMPARED = ("train", "val")
"""Splits whose near-copies are left out: of training images they would add little, and of
validation images they would be trained on and recognised."""


@dataclass
class _Computed:
    """Embeddings and logits of the images that can be read, and the others with their reasons."""

    paths: list[str] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def next_photos(
    run: str,
    paths: Iterable[str],
    *,
    output: Path,
    count: int = 20,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> NextPhotos:
    """Choose unlabelled images, and write a CSV file and a contact sheet of them.

    Features of image files are read from the feature cache and added to it, as in ``predict``.

    Args:
        run: Run directory or checkpoint.
        paths: Image files, and folders that are searched recursively.
        output: CSV file to write; the contact sheet has the same name with the ending .png.
        count: Number of images to choose.
        overwrite: Whether an existing CSV file is replaced.

    Raises:
        CheckpointError.
        ConfigError: the name of the CSV file does not end in .csv.
        DataError: there are no images, none can be read, or the run's data has all of them.
        OutputError: a file exists, or cannot be written.
    """
    reporter = reporter or SilentReporter()
    start = time.perf_counter()
    paths = list(paths)
    sheet = _check_outputs(output, overwrite=overwrite)
    refuse_swapped(run, paths, command="next")
    files = list_images(paths, reporter, command="next", purpose="choose from")
    opened = open_run(run, reporter)
    splits = splits_of_run(
        opened, reporter, so_that="so that copies of its photos are not left out"
    )
    found = KnownPhotos(opened.metadata.class_names, splits)
    pool = [path for path in dict.fromkeys(files) if found.find(path)[1] == UNKNOWN]
    if not pool:
        raise DataError(
            f"{plural(len(files), 'image')}, all of which are in the data of {run} already",
            kind="data.all_known",
            source="next",
            to_do="give images that are not labelled yet",
        )
    predictor = Predictor(opened, keeps=True)
    warn_of_levels(predictor.levels, pool, reporter)
    known_paths = [str(at) for name in _COMPARED if name in splits for at in splits[name].paths]
    known = _computed(predictor, known_paths, "compute the run's own images", reporter)
    computed = _computed(predictor, pool, "compute the pool", reporter)
    if predictor.feature_counts is not None:
        reporter.say(predictor.feature_counts.in_words)
    report_unreadable(computed.unreadable, len(pool), reporter, command=f"finetune next {run}")
    reporter.status("choosing images")
    logits = torch.cat(computed.logits)
    shares = probabilities(logits, predictor.temperature)
    choice = choose_photos(
        torch.cat(computed.vectors),
        1 - margins(shares),
        torch.cat([torch.empty(0, predictor.dimensions), *known.vectors]),
        count=count,
        seed=seed_for(opened.metadata.config.seed, "next photos"),
    )
    photos = _photos(computed.paths, logits, shares, choice, predictor.class_names)
    if len(photos) < count:
        reporter.warn(f"the pool has only {plural(len(photos), 'image')} to choose")
    written = stand_ins(predictor.class_names)
    write_csv(output, HEADER, map(_row, photos))
    files_written = [str(output)]
    if photos:
        _draw(photos, opened.metadata, len(computed.paths), written, sheet)
        files_written.append(str(sheet))
    return NextPhotos(
        checkpoint=run,
        model=predictor.model_name,
        num_pool=len(computed.paths),
        num_known=len({*files}) - len(pool),
        near_known=choice.near_known,
        near_each_other=choice.near_each_other,
        photos=tuple(photos),
        unreadable=tuple(computed.unreadable),
        files=tuple(files_written),
        stand_ins={shown: name for name, shown in written.items()},
        elapsed_s=time.perf_counter() - start,
        features=predictor.feature_counts,
    )


def _check_outputs(output: Path, *, overwrite: bool) -> Path:
    """Check that both files can be written, and return the path of the contact sheet."""
    if output.suffix.lower() != ".csv":
        raise ConfigError(
            "the name must end in .csv",
            kind="config.invalid_value",
            key="--output",
            path=output,
        )
    refuse_to_replace(output, overwrite=overwrite)
    sheet = output.with_suffix(".png")
    check_output(sheet, NEXT_BY)
    return sheet


def _computed(predictor: Predictor, paths: list[str], what: str, reporter: Reporter) -> _Computed:
    found = _Computed()

    def done() -> Iterator[int]:
        for block in predictor.embeddings(paths):
            found.paths += [paths[position] for position in block.positions]
            found.vectors.append(block.vectors)
            found.logits.append(block.logits)
            found.unreadable += [(photo.path, photo.reason) for _, photo in block.broken]
            yield from (position for position, _ in block.broken)
            yield from block.positions

    for _ in reporter.track(done(), what, total=len(paths)):
        pass
    return found


def _photos(
    paths: Sequence[str], logits: Tensor, shares: Tensor, choice: Choice, names: Sequence[str]
) -> list[NextPhoto]:
    at = torch.tensor(choice.positions, dtype=torch.long)
    best = best_classes(logits[at], shares[at], 2)
    return [
        NextPhoto(paths[position], names[first], share, names[second], other, similar)
        for position, similar, (first, second), (share, other) in zip(
            choice.positions, choice.similar, *best, strict=True
        )
    ]


def _row(photo: NextPhoto) -> tuple[str, ...]:
    return (
        photo.path,
        photo.predicted,
        f"{photo.probability:.6f}",
        photo.runner_up,
        f"{photo.runner_up_probability:.6f}",
        f"{photo.margin:.6f}",
        photo.reason,
    )


def _draw(
    photos: Sequence[NextPhoto],
    metadata: Metadata,
    num_pool: int,
    written: dict[str, str],
    path: Path,
) -> None:
    """Draw the chosen images as the network sees them."""
    preprocessing = metadata.preprocessing
    fit = build_fit(preprocessing)
    cells = tuple(
        Cell(
            image_of(fit(read_photo(photo.path, preprocessing.levels))),
            (
                Path(photo.path).name,
                f"{written.get(photo.predicted, photo.predicted)} {photo.probability:.0%}, "
                f"{written.get(photo.runner_up, photo.runner_up)} "
                f"{photo.runner_up_probability:.0%}",
            ),
        )
        for photo in photos
    )
    title = f"{plural(len(photos), 'image')} to label first, of {num_pool:,}"
    words = "The least certain first, with the two most probable classes, as the network sees them."
    save_sheet(draw_sheet([Section(title, words, cells)]), path, NEXT_BY)
