"""``finetune check-data``: summarize a dataset and report its problems before training."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from finetune.config.schema import Config, DataConfig
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.findings import all_findings
from finetune.data.checks.inspect_dataset import (
    DatasetInspection,
    InspectedDataset,
    inspect_dataset,
    known_inspections,
)
from finetune.data.checks.structure import counts_by_class
from finetune.data.checks.survey import Survey, survey
from finetune.results.check import CheckReport, ClassRow, SizeRow, SplitRow


def check_data(
    data: DataConfig,
    *,
    config: Config | None = None,
    workers: int | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> CheckReport:
    """Inspect every image of every split.

    Args:
        config: If given, its seed draws the held-out split and its model determines which images
            are too small.
        workers: Number of decoding processes; one per processor by default.
        fresh: Whether to ignore the inspection cache.

    Raises:
        DataError: there are no images to check.
    """
    return inspect(data, config=config, workers=workers, fresh=fresh, reporter=reporter).report


@dataclass(frozen=True)
class Checked:
    """A dataset, the inspections of its images and the report on it."""

    found: Survey
    inspections: DatasetInspection
    report: CheckReport


def inspect(
    data: DataConfig,
    *,
    config: Config | None = None,
    workers: int | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Checked:
    """Inspect every image as `check_data` does, and return more than its report."""
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    reporter.status("listing the images")
    found = survey(data, seed=config.seed if config else 0, reporter=reporter)
    inspected = inspect_dataset(found.paths, workers=workers, fresh=fresh, reporter=reporter)
    input_size = None if config is None else _input_size(config)
    reporter.status("comparing the images")
    return _checked(found, inspected, data, input_size, start)


def known_check(config: Config, *, input_size: int) -> CheckReport | None:
    """Return the report of ``check-data --config`` if it has inspected all images before.

    Args:
        input_size: Crop size of the network's input, in pixels.

    Raises:
        DataError: there are no images to check.
    """
    start = time.perf_counter()
    found = survey(config.data, seed=config.seed)
    inspections = known_inspections(found.paths)
    if inspections is None:
        return None
    inspected = InspectedDataset(inspections, len(found.paths), None)
    return _checked(found, inspected, config.data, input_size, start).report


def _checked(
    found: Survey,
    inspected: InspectedDataset,
    data: DataConfig,
    input_size: int | None,
    start: float,
) -> Checked:
    inspections = inspected.inspections
    findings = all_findings(found, inspections, data, input_size=input_size)
    rows = counts_by_class(found)
    formats, modes = _kinds(inspections)
    report = CheckReport(
        data=data.root,
        num_images=len(found.paths),
        num_readable=len(inspections.readable),
        splits=_split_rows(found, rows),
        classes=tuple(
            ClassRow(name, sum(row), tuple(row))
            for name, row in zip(found.classes, rows, strict=True)
        ),
        sizes=_sizes(inspections),
        formats=formats,
        modes=modes,
        findings=findings,
        num_remembered=inspected.num_cached,
        elapsed_s=time.perf_counter() - start,
        images_per_s=inspected.images_per_s,
        ok=all(finding.level != "error" for finding in findings),
    )
    return Checked(found, inspections, report)


def _input_size(config: Config) -> int:
    """Crop size of the network's input, in pixels; torchvision is imported only if needed."""
    if not isinstance(config.model.preprocessing, str):
        return config.model.preprocessing.crop
    from finetune.models.build import resolve_model

    return resolve_model(config.model).preprocessing.crop


def _split_rows(found: Survey, rows: list[list[int]]) -> tuple[SplitRow, ...]:
    return tuple(
        SplitRow(
            name,
            sum(row[number] for row in rows),
            sum(row[number] > 0 for row in rows),
            held_out=found.held_out and name == "val",
        )
        for number, name in enumerate(found.splits)
    )


def _sizes(inspections: DatasetInspection) -> SizeRow | None:
    sizes = inspections.size[inspections.readable]
    if not len(sizes):
        return None
    order = np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")
    chosen = [sizes[order[at]].tolist() for at in (0, len(order) // 2, -1)]
    smallest, median, largest = ((width, height) for width, height in chosen)
    return SizeRow(smallest, median, largest)


def _kinds(inspections: DatasetInspection) -> tuple[dict[str, int], dict[str, int]]:
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    counts = np.bincount(inspections.kind[inspections.readable], minlength=len(inspections.kinds))
    for (format_name, mode), count in zip(inspections.kinds, counts.tolist(), strict=True):
        formats[format_name] += count
        modes[mode] += count
    return dict(formats.most_common()), dict(modes.most_common())
