"""``finetune embed``: write the embeddings of images, the inputs of the head."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from finetune.commands.predict import list_images, refuse_swapped, report_unreadable
from finetune.config.schema import Config
from finetune.core.errors import DataError, OutputError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import Images
from finetune.data.levels import settled_levels, warn_of_levels
from finetune.data.sources.known_photos import UNKNOWN, KnownPhotos, find_splits
from finetune.inference.load import LoadedNetwork, open_pretrained
from finetune.inference.predictor import Predictor, open_run
from finetune.report.embeddings import Embeddings, Writer
from finetune.results.evaluation import EmbedResult


def embed(
    source: str | Config,
    paths: Iterable[str],
    *,
    writer: Writer,
    reporter: Reporter | None = None,
) -> EmbedResult:
    """Write the embeddings of images, in the order of the paths.

    Features of image files are read from the feature cache and added to it, as in ``predict``.

    Args:
        source: Run directory or checkpoint; or a config, whose network with pretrained weights is
            used, as it is before training.
        paths: Image files, and folders that are searched recursively.
        writer: Function that writes the file, from `finetune.report.embeddings.open_writer`.

    Raises:
        CheckpointError.
        DataError: there are no images, or none can be read; or the data of a config is invalid.
        OutputError: the file cannot be written.
    """
    reporter = reporter or SilentReporter()
    paths = list(paths)
    if isinstance(source, str):
        refuse_swapped(source, paths, command="embed")
    files = list_images(paths, reporter, command="embed", purpose="embed")
    opened, known = (
        _open_run(source, reporter)
        if isinstance(source, str)
        else _open_config(source, len(files), reporter)
    )
    predictor = Predictor(opened, keeps=True)
    warn_of_levels(predictor.levels, files, reporter)
    start = time.perf_counter()
    vectors = np.empty((len(files), predictor.dimensions), np.float32)
    readable: list[str] = []
    predicted: list[str] = []
    unreadable: list[tuple[str, str]] = []

    def computed() -> Iterator[int]:
        for block in predictor.embeddings(files):
            unreadable.extend((photo.path, photo.reason) for _, photo in block.broken)
            end = len(readable) + len(block.positions)
            vectors[len(readable) : end] = block.vectors.numpy()
            readable.extend(files[position] for position in block.positions)
            best = block.logits.argmax(dim=1).tolist()
            predicted.extend(predictor.class_names[label] for label in best)
            yield from (position for position, _ in block.broken)
            yield from block.positions

    for _ in reporter.track(computed(), "embed", total=len(files)):
        pass
    elapsed_s = time.perf_counter() - start
    if predictor.feature_counts is not None:
        reporter.say(predictor.feature_counts.in_words)
    command = f"finetune embed {source if isinstance(source, str) else '--config FILE'}"
    command += " --output FILE"
    report_unreadable(unreadable, len(files), reporter, command=command)
    found = [known.find(path) for path in readable]
    embeddings = Embeddings(
        readable,
        [label for label, _ in found],
        [split for _, split in found],
        predicted if isinstance(source, str) else None,
        vectors[: len(readable)],
    )
    path = writer(embeddings)
    return EmbedResult(
        checkpoint=source if isinstance(source, str) else None,
        model=predictor.model_name,
        num_images=len(readable),
        num_labelled=sum(label != UNKNOWN for label in embeddings.labels),
        dimensions=predictor.dimensions,
        unreadable=tuple(unreadable),
        files=(str(path),),
        num_bytes=path.stat().st_size,
        elapsed_s=elapsed_s,
        images_per_s=len(readable) / elapsed_s,
        features=predictor.feature_counts,
    )


def _open_run(run: str, reporter: Reporter) -> tuple[LoadedNetwork, KnownPhotos]:
    opened = open_run(run, reporter)
    splits = splits_of_run(
        opened,
        reporter,
        so_that="so that no split is known, and classes only by the names of folders",
    )
    return opened, KnownPhotos(opened.metadata.class_names, splits)


def splits_of_run(opened: LoadedNetwork, reporter: Reporter, *, so_that: str) -> dict[str, Images]:
    """Return the images of each split of a run's data; none, with a warning, if it cannot be read.

    Args:
        so_that: What follows if there are none, for the warning.
    """
    names, config = opened.metadata.class_names, opened.metadata.config
    try:
        return find_splits(config.data, seed=config.seed, class_names=names)
    except (DataError, OutputError) as error:  # the run may come from another machine
        reporter.warn(f"the run's own data cannot be read, {so_that}: {error}")
        return {}


def _open_config(
    config: Config, num_photos: int, reporter: Reporter
) -> tuple[LoadedNetwork, KnownPhotos]:
    splits = find_splits(config.data, seed=config.seed)
    train = splits["train"]
    paths = (*train.paths, *splits["val"].paths)
    levels = settled_levels(config.data.levels, paths, reporter)
    opened = open_pretrained(config, train, levels=levels, num_photos=num_photos, reporter=reporter)
    return opened, KnownPhotos(train.class_names, splits)
