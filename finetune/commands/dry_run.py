"""``finetune train --dry-run``: the setup of a run, without training."""

from __future__ import annotations

from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.config.schema import Config
from finetune.core.memory import steps_of
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.loading.class_weights import class_weights
from finetune.data.loading.sampler import batch_sizes
from finetune.freezing.freeze_report import make_freeze_report
from finetune.freezing.lora import plain_state
from finetune.results.freeze import FreezeReport
from finetune.results.train import DryRun, PlannedStage
from finetune.training.prepare_stage import (
    CarriedState,
    StageSetup,
    prepare_stage,
    run_facts,
    stage_facts,
    training_views,
)
from finetune.training.setup import set_up_run
from finetune.training.time_estimate import predict_time


def dry_run(config: Config, *, overwrite: bool = False, reporter: Reporter | None = None) -> DryRun:
    """Do everything that `train` does before its first step, and write nothing to ``output_dir``.

    Every stage is set up with the initial weights of the first stage.
    """
    reporter = reporter or SilentReporter()
    run_setup = set_up_run(config, reporter)
    # Config errors are reported first; nothing is written, so this check may come afterwards.
    run_dir.check_usable(Path(config.output_dir), overwrite=overwrite)
    carried: CarriedState | None = None
    hashed: list[int] = []
    reports: list[FreezeReport] = []
    stages: list[PlannedStage] = []
    for number in range(len(run_setup.stages)):
        stage_setup = prepare_stage(run_setup, reporter, number=number, carried=carried)
        report, stage = _planned(stage_setup, number + 1)
        hashed.append(stage_setup.frozen_hashes.count)
        reports.append(report)
        stages.append(stage)
        carried = CarriedState(plain_state(stage_setup.model), stage_setup.run_config)
    plan, data, resolved = stage_setup.plan, stage_setup.data, stage_setup.config
    sizes = batch_sizes(len(data.train), resolved.data.batch_size, join_last_of_one=True)
    return DryRun(
        **vars(run_facts(stage_setup, reports)),
        dry_run=True,
        device=stage_setup.engine.device.type,
        batches_per_epoch=len(sizes),
        frozen_hashed=hashed[0],
        predicted=stages[0].predicted,
        stages=tuple(stages),
        class_weights=dict(
            zip(data.train.class_names, class_weights(data.train.counts()), strict=True)
        )
        if resolved.data.balance == "weights"
        else None,
        groups=reports[-1].groups,
        config=stage_setup.run_config.saved_at(len(stages) - 1).plain(),
        notes=(
            *data.notes,
            *filter(None, [plan.spec.note]),
            *dict.fromkeys(text for plan in run_setup.plans for text in plan.freeze.warnings),
        ),
    )


def _planned(stage_setup: StageSetup, number: int) -> tuple[FreezeReport, PlannedStage]:
    plan, config = stage_setup.plan, stage_setup.config
    report = make_freeze_report(plan, config, config.optimizer, split=stage_setup.engine.split)
    work = plan.cost.forward_trainable * config.data.batch_size
    with steps_of(work):
        predicted = predict_time(
            stage_setup.engine, config, stage_setup.data, training_views(config)
        )
    facts = stage_facts(config, report, number=number)
    return report, PlannedStage(**vars(facts), predicted=predicted)
