"""``finetune freeze-report``: what ``train`` would freeze; needs neither weights nor data.

With ``--probe``, which needs both: how accurate a linear probe is on the output of each block.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from finetune.checkpoints.finetuned_source import find_source_run
from finetune.config.schema import Config
from finetune.config.stages import stage_configs
from finetune.core.errors import ConfigError, DataError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.data.images import TrainVal
from finetune.data.sources.open import find_train_val
from finetune.freezing.freeze_report import make_freeze_report, staged_report
from finetune.freezing.plan import Plan
from finetune.inference.confidence_intervals import wilson
from finetune.models.build import is_path
from finetune.recipes.auto import plan_config, resolve_optimizer
from finetune.recipes.ladder import probe_config
from finetune.recipes.named import expand_recipe
from finetune.report.tuning_plots import DEPTHS_BY, check_picture, draw_depths
from finetune.results.freeze import DepthReport, DepthRow, FreezeReport, StagedFreezeReport
from finetune.training.prepare_stage import StageSetup, prepare_stage
from finetune.training.setup import (
    freezing_differences,
    make_plans,
    set_up_run,
    without_validation,
)
from finetune.tuning.block_probes import DepthProbes, probe_blocks


def freeze_report(
    config: Config,
    *,
    num_classes: int | None = None,
    stage: int | None = None,
    reporter: Reporter | None = None,
) -> FreezeReport | StagedFreezeReport:
    """Report which parameters `train` would freeze.

    Args:
        num_classes: Number of classes; by default the number found in the data.
        stage: Index of the only stage to report, from 1; by default all stages.

    Raises:
        ConfigError: a pattern matches nothing, the number of classes is unknown, or the stage
            does not exist.
        ModelError: the weights do not exist, or the network cannot be built.
    """
    found = _find(config, reporter) if num_classes is None else None
    names = found.train.class_names if found else ()
    classes = num_classes or len(names)
    number = len(found.train) if found else None
    config = expand_recipe(config, num_train=number)
    stages = stage_configs(config)
    if stage is not None and stage > len(stages):
        raise ConfigError(
            f"there is no stage {stage}; this config has {len(stages)}",
            kind="config.invalid_value",
            key="--stage",
        )
    plans = make_plans(stages, classes)
    if found is not None:
        stages = tuple(
            plan_config(part, plan, num_train=len(found.train), class_names=names)
            for part, plan in zip(stages, plans, strict=True)
        )
    reports = [
        make_freeze_report(
            plan,
            part,
            resolve_optimizer(part, plan, number),
            num_train=number,
            num_val=len(found.val) if found else None,
        )
        for plan, part in zip(plans, stages, strict=True)
    ]
    reports[0] = _with_changes(reports[0], config, plans[0])
    if stage is not None:
        return reports[stage - 1]
    return staged_report(reports, [part.train.epochs for part in stages])


def _with_changes(report: FreezeReport, config: Config, plan: Plan) -> FreezeReport:
    """Add a warning for freezing differences that `train` would reject."""
    earlier = plan.spec.earlier
    changes = freezing_differences(plan, earlier) if earlier is not None else ""
    if not changes or config.freeze.may_differ:
        return report
    text = f"freeze.patterns: {changes}; `finetune train` requires freeze.may_differ: true"
    return replace(report, warnings=(*report.warnings, text))


def _find(config: Config, reporter: Reporter | None) -> TrainVal:
    try:
        return find_train_val(config.data, seed=config.seed, reporter=reporter)
    except DataError as error:
        raise ConfigError(
            f"the number of classes is unknown, since the data cannot be read ({error})",
            kind="config.unknown_num_classes",
            to_do="give it with --num-classes N",
        ) from error


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
    probe = probe_config(config)
    # Nothing is trained or written, so that the weights may be those of the run in output_dir.
    values: dict[str, object] = {"output_dir": f"{config.output_dir}-probe"}
    if is_path(config.model.weights) and find_source_run(config.model.weights) is not None:
        values["freeze.may_differ"] = True
    run_setup = set_up_run(probe.with_values(values), reporter)
    if not len(run_setup.data.val):
        raise without_validation("probes are judged", "leave out --probe")
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
