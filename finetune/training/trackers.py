"""Experiment trackers: TensorBoard, MLflow, Weights & Biases and Trackio, by their own libraries.

A tracker that fails is left out from then on with a warning; it never ends a run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from finetune.config.track import TrackConfig
from finetune.core.errors import ConfigError
from finetune.core.reporter import Reporter
from finetune.core.text import flattened

_PACKAGES = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
}
_EVENTS = "tensorboard"
"""Folder of TensorBoard's event files in the run directory."""


@dataclass(frozen=True)
class TrackedRun:
    """Description of a run for its trackers, at its start.

    Attributes:
        folder: Run directory.
        project: Project or experiment.
        name: Name of the run.
        config: Config by dotted key.
    """

    folder: Path
    project: str
    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Results of a finished run for its trackers.

    Attributes:
        figures: Numbers of the summary by name.
        pictures: PNG files by name.
        checkpoint: Best checkpoint; None if it is not to be sent.
    """

    figures: Mapping[str, float]
    pictures: Mapping[str, Path] = field(default_factory=dict)
    checkpoint: Path | None = None


class Tracker(Protocol):
    """Receiver of one run."""

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Log the metrics of an epoch, counted from 1."""

    def results(self, results: Results) -> None:
        """Log the results of a finished run."""

    def close(self, *, failed: bool) -> None:
        """End the run in the tracker."""


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of epochs that a resumed run sends again are dropped.
        self._writer: Any = SummaryWriter(str(run.folder / _EVENTS), purge_step=1)
        text = "\n".join(f"    {key}: {value}" for key, value in run.config.items())
        self._writer.add_text("config", text)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self._writer.add_scalar(key, value, number)
        self._writer.flush()

    def results(self, results: Results) -> None:
        import numpy as np
        from PIL import Image

        for key, value in results.figures.items():
            self._writer.add_scalar(f"final/{key}", value)
        for name, path in results.pictures.items():
            with Image.open(path) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        self._writer.close()


class _MLflow:
    def __init__(self, run: TrackedRun) -> None:
        import mlflow

        mlflow.set_experiment(run.project)
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(run.project)
        assert experiment is not None
        self._id = self._client.create_run(experiment.experiment_id, run_name=run.name).info.run_id
        for key, value in run.config.items():
            self._client.log_param(self._id, key, value)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self._client.log_metric(self._id, key, value, step=number)

    def results(self, results: Results) -> None:
        for key, value in results.figures.items():
            self._client.log_metric(self._id, f"final.{key}", value)
        for path in (*results.pictures.values(), results.checkpoint):
            if path is not None:
                self._client.log_artifact(self._id, str(path))

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=run.project, name=run.name, config=dict(run.config), dir=str(run.folder)
        )

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=number)

    def results(self, results: Results) -> None:
        self._run.summary.update(dict(results.figures))
        if results.pictures:
            self._run.log(
                {name: self._wandb.Image(str(path)) for name, path in results.pictures.items()}
            )
        if results.checkpoint is not None:
            artifact = self._wandb.Artifact(f"{self._run.id}-checkpoint", type="model")
            artifact.add_file(str(results.checkpoint))
            self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio: Any = trackio
        trackio.init(project=run.project, name=run.name, config=dict(run.config))

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        self._trackio.log(dict(figures), step=number)

    def results(self, results: Results) -> None:
        final: dict[str, Any] = {f"final.{key}": value for key, value in results.figures.items()}
        final |= {name: self._trackio.Image(path) for name, path in results.pictures.items()}
        self._trackio.log(final)
        if results.checkpoint is not None:
            self._trackio.save(str(results.checkpoint))

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        self._trackio.finish()


_TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def require_trackers(config: TrackConfig | None) -> None:
    """Check that the packages of all trackers are installed.

    Raises:
        ConfigError: One of them is not.
    """
    for name in () if config is None else config.to:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"needs the package {_PACKAGES[name]}, which is not installed",
                kind="config.missing_package",
                key="track.to",
                to_do=f"install it with `python -m pip install 'finetune-vision[{name}]'`",
            )


class Trackers:
    """Trackers of a run; without any, every method does nothing.

    Args:
        config: Section ``track``; None without trackers.
        run: Description of the run.
    """

    def __init__(self, config: TrackConfig | None, run: TrackedRun, reporter: Reporter) -> None:
        self.config = config
        self._run, self._reporter = run, reporter
        self._waiting = () if config is None else config.to
        self._open: dict[str, Tracker] = {}
        self._has_results = False

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))

    def begin(self, known: Iterable[Mapping[str, Any]]) -> None:
        """Begin the run in each tracker, and send the epochs that a resumed run has; once."""
        waiting, self._waiting = self._waiting, ()
        for name in waiting:
            self._guarded(name, partial(self._opened, name))
        if waiting:
            for record in known:
                self.epoch(record)

    def _opened(self, name: str) -> None:
        self._open[name] = _TRACKERS[name](self._run)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Send the metrics of an epoch, as in ``metrics.jsonl``."""
        figures = dict(numbers_of(record))
        self._each(lambda tracker: tracker.epoch(int(record["epoch"]), figures))

    def results(self, results: Results) -> None:
        """Send the results of the finished run."""
        self._each(lambda tracker: tracker.results(results))

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._open.items()]:
            self._guarded(name, partial(work, tracker))

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever a library raises
            self._open.pop(name, None)
            said = str(error).strip().splitlines() or [type(error).__name__]
            self._reporter.warn(f"track: {name} failed and gets nothing more: {said[0]}")


def numbers_of(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Yield the dotted name and the value of each number in nested values."""
    for key, value in flattened(values):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested sections by dotted key, lists as text."""
    return {
        key: str(value) if isinstance(value, list | tuple) else value
        for key, value in flattened(values)
        if not isinstance(value, Mapping)
    }
