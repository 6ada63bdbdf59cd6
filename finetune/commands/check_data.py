"""``finetune check-data``: what is in a data set, and what is wrong with it, before training."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from finetune.check_results import CheckReport, ClassRow, SizeRow, SplitRow
from finetune.config import Config, DataConfig
from finetune.data.check_findings import all_findings
from finetune.data.check_structure import counts_by_class
from finetune.data.looks import Looks, look_at_everything
from finetune.data.survey import Survey, survey
from finetune.progress import Progress, Silent


def check_data(
    data: DataConfig,
    *,
    config: Config | None = None,
    workers: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Look at every image of every split.

    Args:
        config: Where there is one: its seed draws the held-out split, its model says which images
            are too small.
        workers: Processes that decode; default: one a processor.
        fresh: Look again at what earlier runs remember.

    Raises:
        DataError: there is nothing that could be checked.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    found = survey(data, seed=config.seed if config else 0, progress=progress)
    looking = look_at_everything(found.paths, workers=workers, fresh=fresh, progress=progress)
    looks = looking.looks
    findings = all_findings(
        found, looks, data, input_size=None if config is None else _input_size(config)
    )
    rows = counts_by_class(found)
    formats, modes = _kinds(looks)
    return CheckReport(
        data=data.root,
        num_images=len(found.paths),
        num_readable=len(looks.readable),
        splits=_split_rows(found, rows),
        classes=tuple(
            ClassRow(name, sum(row), tuple(row))
            for name, row in zip(found.classes, rows, strict=True)
        ),
        sizes=_sizes(looks),
        formats=formats,
        modes=modes,
        findings=findings,
        num_remembered=looking.num_remembered,
        elapsed_s=time.perf_counter() - start,
        images_per_s=looking.images_per_s,
        ok=all(finding.level != "error" for finding in findings),
    )


def _input_size(config: Config) -> int:
    """Pixels of the crop that the network looks at; torchvision is asked where it has to be."""
    if not isinstance(config.model.preprocessing, str):
        return config.model.preprocessing.crop
    from finetune.model import resolve_model

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


def _sizes(looks: Looks) -> SizeRow | None:
    sizes = looks.size[looks.readable]
    if not len(sizes):
        return None
    order = np.argsort(sizes.min(axis=1), kind="stable")
    chosen = [sizes[order[at]].tolist() for at in (0, len(order) // 2, -1)]
    smallest, median, largest = ((width, height) for width, height in chosen)
    return SizeRow(smallest, median, largest)


def _kinds(looks: Looks) -> tuple[dict[str, int], dict[str, int]]:
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    counts = np.bincount(looks.kind[looks.readable], minlength=len(looks.kinds))
    for (format_name, mode), count in zip(looks.kinds, counts.tolist(), strict=True):
        formats[format_name] += count
        modes[mode] += count
    return dict(formats.most_common()), dict(modes.most_common())
