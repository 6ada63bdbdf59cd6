"""``finetune compare``: metrics of several runs side by side, with paired significance tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoints import run_dir
from finetune.commands.evaluate import EvalOptions, Evaluated, compute
from finetune.config.schema import Config
from finetune.core.errors import ConfigError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.inference.confidence_intervals import holm, mcnemar
from finetune.report.plots import Curve, draw_curves, load_matplotlib
from finetune.results.evaluation import Comparison, ConfigRow, PairedTest, RunFigures

_LEVEL = 0.05
_IF_UNKNOWN = (
    "compare scores every image: --data must contain only classes of all runs; folders whose names "
    "start with a dot are skipped."
)
_UNLIKE_ANYWAY = ("output_dir", "format")


@dataclass(frozen=True)
class ScoredRun:
    """The part of an evaluation that the comparison keeps, so that the network can be freed.

    Attributes:
        right: Whether each image was classified correctly, by its real path and its class.
    """

    name: str
    config: Config
    figures: RunFigures
    interval_method: str
    right: Mapping[tuple[str, str], bool]


def compare(
    runs: Sequence[str],
    *,
    data: str | None = None,
    split: str = "val",
    plot: Path | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Score every run, and test each pair of runs on their common images.

    Args:
        runs: Run directories or checkpoints.
        data: Data to score all runs on, instead of each run's own.
        plot: Output file of the learning curves; its extension selects the format.

    Raises:
        ConfigError: fewer than two runs are given, or matplotlib is missing.
        CheckpointError, DataError.
    """
    reporter = reporter or SilentReporter()
    if len(runs) < 2:
        raise ConfigError(
            "needs two or more runs",
            kind="config.missing_argument",
            source="compare",
            to_do="name them, as in `finetune compare runs/a runs/b`",
        )
    if plot is not None:
        load_matplotlib(plot)
    paths = [run_dir.checkpoint_of(run) for run in runs]
    options = EvalOptions(data=data, split=split)
    scored = [
        _keep(
            run,
            path,
            compute(path, options, if_unknown=_IF_UNKNOWN, reporter=reporter),
        )
        for run, path in zip(runs, paths, strict=True)
    ]
    if plot is not None:
        draw_curves(
            [
                Curve.of(run, run_dir.records_of(path))
                for run, path in zip(runs, paths, strict=True)
            ],
            plot,
            reporter=reporter,
        )
    return Comparison(
        runs=tuple(run.figures for run in scored),
        differing=differing([run.config for run in scored]),
        tests=paired_tests(scored),
        interval_method=_methods(scored),
        plot=None if plot is None else str(plot),
    )


def _keep(name: str, path: Path, evaluated: Evaluated) -> ScoredRun:
    result, images = evaluated.result, evaluated.images
    right = (evaluated.predicted == evaluated.labels).tolist()
    return ScoredRun(
        name=name,
        config=evaluated.opened.metadata.config,
        figures=RunFigures(
            run=name,
            checkpoint=str(path),
            model=result.model,
            data=result.data,
            num_images=result.num_images,
            top1=result.top1,
            balanced_accuracy=result.balanced_accuracy,
            loss=result.loss,
            macro_f1=result.macro.f1,
            calibration_error=result.calibration.error,
            intervals=result.intervals,
            features=result.features,
            caveats=result.caveats,
        ),
        interval_method=result.interval_method,
        right={
            (os.path.realpath(image), images.class_names[label]): hit
            for image, label, hit in zip(images.paths, images.labels, right, strict=True)
        },
    )


def _methods(runs: Sequence[ScoredRun]) -> str:
    """Description of the interval method, listed per run if the runs differ."""
    if len({run.interval_method for run in runs}) == 1:
        return runs[0].interval_method
    return "; ".join(f"{run.name}: {run.interval_method}" for run in runs)


def differing(configs: Sequence[Config]) -> tuple[ConfigRow, ...]:
    """Return the keys whose values differ between the configs, in config order."""
    flat = [dict(_flat(config.plain())) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = (ConfigRow(key, tuple(one.get(key) for one in flat)) for key in keys)
    return tuple(
        row
        for row in rows
        if row.key not in _UNLIKE_ANYWAY and any(value != row.values[0] for value in row.values)
    )


def _flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def paired_tests(runs: Sequence[ScoredRun]) -> tuple[PairedTest, ...]:
    pairs = list(itertools.combinations(runs, 2))
    counts = []
    for one, other in pairs:
        common = one.right.keys() & other.right.keys()
        only_one = sum(one.right[key] and not other.right[key] for key in common)
        only_other = sum(other.right[key] and not one.right[key] for key in common)
        counts.append((len(common), only_one, only_other))
    p_values = [mcnemar(one, other) for images, one, other in counts if images]
    adjusted = iter(holm(p_values))
    return tuple(
        _test(one.name, other.name, *count, next(adjusted) if count[0] else None, len(p_values))
        for (one, other), count in zip(pairs, counts, strict=True)
    )


def _test(
    first: str,
    second: str,
    images: int,
    only_first: int,
    only_second: int,
    adjusted: float | None,
    num_tests: int,
) -> PairedTest:
    these = "this one image" if images == 1 else f"these {images:,} images"
    different = adjusted is not None and adjusted < _LEVEL
    if adjusted is None:
        sentence = (
            f"{first} and {second} were scored on no image in common: no paired test; --data "
            "gives both the same ones"
        )
    elif not only_first and not only_second:
        sentence = f"{first} and {second} recognise the very same of {these}"
    else:
        better, worse = (first, second) if only_first >= only_second else (second, first)
        verdict = (
            f"{better} is better than {worse} on {these}"
            if different
            else f"{first} and {second} cannot be told apart on {these}"
        )
        holms = f" after Holm's correction for {num_tests} pairs" if num_tests > 1 else ""
        sentence = (
            f"{verdict}: {first} alone recognises {only_first:,} of them, {second} alone "
            f"{only_second:,} (McNemar's exact test, p = {adjusted:.2g}{holms})"
        )
    return PairedTest(
        first=first,
        second=second,
        num_images=images,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second) if images else None,
        adjusted=adjusted,
        different=different,
        sentence=sentence,
    )
