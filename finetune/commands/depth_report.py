"""``finetune freeze-report --probe``: accuracy of a linear probe on the output of each block."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from finetune.config.schema import Config
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.inference.confidence_intervals import wilson
from finetune.report.tuning_plots import DEPTHS_BY, check_picture, draw_depths
from finetune.results.freeze import DepthReport, DepthRow
from finetune.training.prepare_stage import StageSetup, prepare_stage
from finetune.training.setup import without_validation
from finetune.tuning.block_probes import DepthProbes, probe_blocks
from finetune.tuning.frozen_features import set_up_frozen


def depth_report(
    config: Config, *, picture: Path | None = None, reporter: Reporter | None = None
) -> DepthReport:
    """Report the accuracy of a linear probe on the pooled output of each block.

    The pretrained network is used; what the config freezes or trains does not matter.

    Args:
        picture: Output PNG file of the plot.

    Raises:
        ConfigError: there are no validation images, or ``picture`` is not a PNG file name.
        FinetuneError: any other subclass of it.
    """
    start = time.perf_counter()
    shown = reporter or SilentReporter()
    if picture is not None:
        check_picture(picture, DEPTHS_BY)
    stage_setup, found = dropping_unreadable(
        lambda _: _probed(config, shown),
        on_unreadable=config.data.on_unreadable,
        reporter=shown,
    )
    plan, data = stage_setup.plan, stage_setup.data
    rows = tuple(_depth_row(found, number) for number in range(len(found.probes)))
    best = max(rows, key=lambda row: row.num_correct)
    error = math.sqrt(best.top1 * (1 - best.top1) / found.num_val)
    earliest = next(at for at, row in enumerate(rows) if row.top1 >= best.top1 - error)
    after = found.probes[earliest + 1 :]
    report = DepthReport(
        model=plan.spec.name,
        weights=plan.spec.weights,
        num_classes=len(data.train.class_names),
        num_train=found.num_train,
        num_val=found.num_val,
        of_train=len(data.train),
        of_val=len(data.val),
        rows=rows,
        best=best.block,
        earliest=rows[earliest].block,
        patterns=("*", *(f"!{probe.block.pattern}" for probe in after)),
        picture=None if picture is None else str(picture),
        elapsed_s=time.perf_counter() - start,
    )
    if picture is not None:
        draw_depths(report, picture)
    return replace(report, elapsed_s=time.perf_counter() - start)


def _probed(config: Config, reporter: Reporter) -> tuple[StageSetup, DepthProbes]:
    run_setup = set_up_frozen(config, reporter)
    if not len(run_setup.data.val):
        raise without_validation(
            "probes are judged", "set a fraction above 0, or leave out --probe"
        )
    stage_setup = prepare_stage(run_setup, reporter)
    return stage_setup, probe_blocks(stage_setup, reporter)


def _depth_row(found: DepthProbes, number: int) -> DepthRow:
    probe = found.probes[number]
    interval = wilson(probe.num_correct, found.num_val)
    assert interval is not None
    return DepthRow(
        block=probe.block.name,
        parameters=probe.block.parameters,
        work=probe.work,
        dimensions=probe.dimensions,
        num_correct=probe.num_correct,
        top1=probe.num_correct / found.num_val,
        low=interval.low,
        high=interval.high,
    )
