"""``finetune train --dry-run``: everything that ``train`` does up to its first step."""

from __future__ import annotations

from pathlib import Path

from finetune import run_folder
from finetune.adapters import plain_state
from finetune.commands.preparation import Carried, Prepared, prepare, stage_facts, training_views
from finetune.commands.settling import settle
from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.data.loading import batch_sizes
from finetune.planning import make_freeze_report, totals_of
from finetune.progress import Progress, Silent
from finetune.results import DryRun, FreezeReport
from finetune.runtime import steps_of
from finetune.stage_results import PlannedStage
from finetune.timing import predict_time


def dry_run(config: Config, *, overwrite: bool = False, progress: Progress | None = None) -> DryRun:
    """Everything that `train` does up to its first step, for each stage with the weights that the
    first begins with; writes nothing into ``output_dir``."""
    progress = progress or Silent()
    settled = settle(config, progress)
    # After what is wrong with the config: nothing is written, so that this comes in time.
    run_folder.check_usable(Path(config.output_dir), overwrite=overwrite)
    carried: Carried | None = None
    hashed: list[int] = []
    reports: list[FreezeReport] = []
    stages: list[PlannedStage] = []
    for number in range(len(settled.stages)):
        prepared = prepare(settled, progress, number=number, carried=carried)
        report, stage = _planned(prepared, number + 1)
        hashed.append(prepared.proof.count)
        reports.append(report)
        stages.append(stage)
        carried = Carried(plain_state(prepared.model), prepared.config.stages)
    plan, data, resolved = prepared.plan, prepared.data, prepared.config
    totals = totals_of(reports)
    sizes = batch_sizes(len(data.train), resolved.data.batch_size, join_last_of_one=True)
    return DryRun(
        dry_run=True,
        run_dir=resolved.output_dir,
        model=plan.spec.name,
        weights=plan.spec.weights,
        head=plan.spec.family.head,
        device=prepared.engine.device.type,
        class_names=data.train.class_names,
        num_train=len(data.train),
        num_val=len(data.val),
        batches_per_epoch=len(sizes),
        trainable_parameters=totals.trainable + max(it.adapters.parameters for it in reports),
        frozen_parameters=totals.frozen,
        trainable_tensors=totals.trainable_tensors + max(2 * it.adapters.weights for it in reports),
        frozen_tensors=totals.frozen_tensors,
        frozen_hashed=hashed[0],
        predicted=stages[0].predicted,
        stages=tuple(stages),
        class_weights=dict(
            zip(data.train.class_names, class_weights(data.train.counts()), strict=True)
        )
        if resolved.data.balance == "weights"
        else None,
        groups=reports[-1].groups,
        config=resolved.plain(),
        notes=(
            *data.notes,
            *filter(None, [plan.spec.note]),
            *dict.fromkeys(text for plan in settled.plans for text in plan.freeze.warnings),
        ),
    )


def _planned(prepared: Prepared, number: int) -> tuple[FreezeReport, PlannedStage]:
    plan, config = prepared.plan, prepared.config
    report = make_freeze_report(plan, config, split=prepared.engine.split)
    work = plan.cost.forward_live * config.data.batch_size
    with steps_of(work):
        predicted = predict_time(prepared.engine, config, prepared.data, training_views(config))
    facts = stage_facts(config, report, number=number)
    return report, PlannedStage(**vars(facts), predicted=predicted)
