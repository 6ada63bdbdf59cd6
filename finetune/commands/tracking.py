"""Results of a finished run for its experiment trackers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.config.schema import Config
from finetune.core.errors import FinetuneError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.results.train import TrainSummary
from finetune.training.trackers import Results, Trackers, numbers_of

_FIGURES = ("best_epoch", "last_epoch", "elapsed_s", "num_train", "num_val")


def send_results(
    trackers: Trackers, config: Config, summary: TrainSummary, reporter: Reporter
) -> None:
    """Send the figures of a run and, where the config asks for them, pictures and the checkpoint.

    What cannot be drawn is left out with a warning.
    """
    track = trackers.config
    if track is None:
        return
    values = asdict(summary)
    figures = dict(numbers_of({key: values[key] for key in (*_FIGURES, "val")}))
    with tempfile.TemporaryDirectory() as name:
        pictures: dict[str, Path] = {}
        if track.pictures:
            try:
                pictures.update(_drawn(config, summary, Path(name)))
            except FinetuneError as error:
                reporter.warn(f"track.pictures: {error}")
        checkpoint = Path(summary.run_dir) / run_dir.BEST
        trackers.results(Results(figures, pictures, checkpoint if track.checkpoint else None))


def _drawn(config: Config, summary: TrainSummary, folder: Path) -> Iterator[tuple[str, Path]]:
    """Draw a sample batch and, of validation images, the confusion matrix and the curves."""
    from finetune.commands.report import report
    from finetune.commands.show_batch import show_batch

    batch = folder / "batch.png"
    show_batch(config, batch, reporter=SilentReporter())
    yield "batch", batch
    if summary.val is not None:
        drawn = report(summary.run_dir, as_pictures=True, output=folder)
        for file in drawn.files:
            yield Path(file).stem.removeprefix("report-"), Path(file)
