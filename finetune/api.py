"""Python interface: the commands as functions, and a run as an object.

Each function calls the code of the command of the same name. `finetune` offers these functions
itself, and imports torch only when one of them is called.
"""

from __future__ import annotations

import html
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.checkpoints import run_dir
from finetune.commands import ladder as ladder_command
from finetune.commands import report as report_command
from finetune.commands import train as train_command
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.config.base import AUTO
from finetune.config.load import config_of, load_config
from finetune.config.schema import Config
from finetune.core.errors import CheckpointError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import flattened
from finetune.inference.predictor import ImageLike, Predictor, open_predictor
from finetune.results.evaluation import EvalResult, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_PAGE_HEIGHT = 640


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Train as ``finetune train`` does, and return the run.

        run = finetune.train("pets.yaml", train={"epochs": 20}, recipe="last_block")
        run = finetune.train({"model": {"name": "mobilenet_v2"}, "data": {"root": "photos/pets"}})

    Args:
        config: Config file, plain values as in a file, or `finetune.config.schema.Config`.
        overwrite: Whether to replace an existing run in ``output_dir``.
        resume: Whether to resume the run in ``output_dir``.
        progress: Whether to show progress bars and messages on stderr; in a notebook, the bars
            are widgets if ipywidgets is installed.
        overrides: Values that replace those of the config, as ``--set`` does: a section as a
            mapping of its keys, or one key. A value of None resets a key to its default.

    Raises:
        finetune.core.errors.FinetuneError: The config, the data or the weights are invalid, or the
            result cannot be written; the message says what to do.
    """
    loaded = _loaded(config, overrides)
    reporter = _reporter(progress)
    if loaded.recipe == AUTO and not resume:
        ladder_command.train_within(loaded, overwrite=overwrite, reporter=reporter)
    else:
        train_command.train(loaded, overwrite=overwrite, resume=resume, reporter=reporter)
    return Run(loaded.output_dir)


def evaluate(
    run: str | os.PathLike[str] | Run,
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "val",
    calibrate: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Evaluate a run or a checkpoint as ``finetune eval`` does.

    Args:
        data: Other data to evaluate on; by default the run's own.
        split: ``train``, ``val`` or ``test``.
        calibrate: Whether to fit the temperature on these images and store it in the checkpoint.

    Raises:
        finetune.core.errors.FinetuneError: The checkpoint or the data is invalid.
    """
    options = EvalOptions(
        data=None if data is None else os.fspath(data), split=split, calibrate=calibrate
    )
    return evaluate_checkpoint(
        run_dir.checkpoint_of(_path_of(run)), options, reporter=_reporter(progress)
    )


def predict(
    run: str | os.PathLike[str] | Run,
    images: ImageLike | Iterable[ImageLike],
    *,
    top: int = 5,
    threshold: float = 0.0,
    coverage: float | None = None,
) -> list[Prediction]:
    """Label images with a run; see `finetune.inference.predictor.Predictor.predict`.

    To label images repeatedly, load the network once with `finetune.load`.

    Raises:
        finetune.core.errors.CheckpointError: The run has no usable checkpoint.
        finetune.core.errors.DataError: An image cannot be decoded.
    """
    network = run.network if isinstance(run, Run) else open_predictor(run)
    return network.predict(images, top=top, threshold=threshold, coverage=coverage)


class Run:
    """Folder of a training run, with its metrics and its trained network.

    Args:
        path: Run directory.

    Raises:
        finetune.core.errors.CheckpointError: There is no run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not run_dir.is_run(self.path):
            raise CheckpointError(
                "is not a run",
                kind="checkpoint.not_found",
                path=self.path,
                to_do=run_dir.nearest_run(self.path),
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> Config:
        """Resolved config, which repeats the run."""
        return load_config(self.path / run_dir.CONFIG)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Summary of the training, as ``summary.json``; empty if it was interrupted."""
        path = self.path / run_dir.SUMMARY
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch; empty without validation images."""
        best = self.best
        return {key[4:]: value for key, value in best.items() if key.startswith("val_")}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of the epochs, which ``pandas.DataFrame(run.history)`` turns into a table.

        Validation metrics have the prefix ``val_``.
        """
        rows = []
        for record in run_dir.records_of(self.path / run_dir.BEST, validated=False):
            val = record.get("val") or {}
            own = {key: value for key, value in record.items() if key != "val"}
            rows.append(own | {f"val_{key}": value for key, value in val.items()})
        return rows

    @property
    def best(self) -> dict[str, Any]:
        """Row of the best epoch by ``train.monitor``; the last one without validation images."""
        rows = self.history
        number = self.summary.get("best_epoch")
        if number is None:
            return rows[-1] if rows else {}
        return next(row for row in rows if row["epoch"] == number)

    @cached_property
    def network(self) -> Predictor:
        """Trained network of the best epoch."""
        return open_predictor(self.path)

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        threshold: float = 0.0,
        coverage: float | None = None,
    ) -> list[Prediction]:
        """Label one or several images: paths, Pillow images, arrays or tensors."""
        return predict(self, images, top=top, threshold=threshold, coverage=coverage)

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the embeddings of images, ``(n, d)`` float32: the inputs of the head."""
        return self.network.embed(images)

    def evaluate(
        self,
        *,
        data: str | os.PathLike[str] | None = None,
        split: str = "val",
        progress: bool = True,
    ) -> EvalResult:
        """Evaluate the best epoch, on the validation images by default."""
        return evaluate(self, data=data, split=split, progress=progress)

    def report(
        self,
        *,
        data: str | os.PathLike[str] | None = None,
        split: str = "val",
        progress: bool = True,
    ) -> Report:
        """Write the HTML report, which a notebook displays."""
        result = report_command.report(
            str(self.path),
            data=None if data is None else os.fspath(data),
            split=split,
            reporter=_reporter(progress),
        )
        return Report(Path(result.files[0]))


class Report:
    """HTML page of a run; a notebook displays it in a frame."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        # The page gets no access to the notebook: its origin is its own.
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads allow-modals" '
            f'width="100%" height="{_PAGE_HEIGHT}" style="border: 0"></iframe>'
        )


class ProgressReporter:
    """`Reporter` with tqdm's bars, which are widgets in a notebook, and messages on stderr."""

    def say(self, text: str, *, good: bool = False) -> None:  # noqa: ARG002
        self._write(text)

    def detail(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")

    def status(self, text: str) -> None: ...

    def track(self, items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=description, total=total, leave=False, file=sys.stderr)

    @staticmethod
    def _write(text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def _reporter(progress: bool) -> Reporter:
    return ProgressReporter() if progress else SilentReporter()


def _path_of(run: str | os.PathLike[str] | Run) -> str:
    return str(run.path) if isinstance(run, Run) else os.fspath(run)


def _loaded(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Mapping[str, Any]
) -> Config:
    given = [f"{key}={json.dumps(value)}" for key, value in flattened(overrides)]
    if isinstance(config, Config):
        return config_of(config.plain(), given)
    if isinstance(config, Mapping):
        return config_of(config, given)
    return load_config(Path(config), given)
