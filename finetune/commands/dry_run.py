"""``finetune train --dry-run``: everything that ``train`` does up to its first step."""

from __future__ import annotations

from pathlib import Path

from finetune import run_folder
from finetune.commands.preparation import prepare, training_views
from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.data.loading import batch_sizes
from finetune.planning import make_freeze_report
from finetune.progress import Progress, Silent
from finetune.results import DryRun
from finetune.runtime import threads_for
from finetune.timing import predict_time


def dry_run(config: Config, *, overwrite: bool = False, progress: Progress | None = None) -> DryRun:
    """Everything that `train` does up to its first step; writes nothing into ``output_dir``."""
    progress = progress or Silent()
    run_folder.check_usable(Path(config.output_dir), overwrite=overwrite)
    prepared = prepare(config, progress)
    plan, data, resolved = prepared.plan, prepared.data, prepared.config
    report = make_freeze_report(plan, resolved, split=prepared.engine.split)
    totals = report.totals
    with threads_for(plan.cost.forward_live * resolved.data.batch_size):
        predicted = predict_time(prepared.engine, resolved, data, training_views(resolved))
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
        trainable_parameters=totals.trainable + report.adapters.parameters,
        frozen_parameters=totals.frozen,
        trainable_tensors=totals.trainable_tensors + 2 * report.adapters.weights,
        frozen_tensors=totals.frozen_tensors,
        frozen_hashed=prepared.proof.count,
        predicted=predicted,
        class_weights=dict(
            zip(data.train.class_names, class_weights(data.train.counts()), strict=True)
        )
        if resolved.data.balance == "weights"
        else None,
        groups=report.groups,
        config=resolved.plain(),
        notes=(*data.notes, *plan.freeze.warnings),
    )
