"""``finetune train``: the one place that knows the whole flow."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from finetune import run_folder, stopping
from finetune.checkpoint import load_checkpoint
from finetune.commands.epochs import Trained, run_epochs
from finetune.commands.preparation import (
    Prepared,
    prepare,
    training_views,
)
from finetune.commands.resuming import Resumed, command, find_resumed
from finetune.config import Config
from finetune.config_file import to_yaml
from finetune.data.images import below
from finetune.data.mixing import Mixing
from finetune.data.quick_check import dropping_unreadable
from finetune.data.views import Views
from finetune.engine import make_source
from finetune.evaluate import Evaluation
from finetune.features import Source
from finetune.files import write_csv, write_text
from finetune.monitor import why_stopped
from finetune.planning import (
    make_freeze_report,
)
from finetune.progress import Progress, Silent
from finetune.proof import Proof
from finetune.report.json_text import to_json
from finetune.report.text import render_freeze_report
from finetune.results import FreezeReport, Scores, TrainSummary
from finetune.runtime import peak_memory_mib, threads_for
from finetune.saving import Saver


def train(
    config: Config,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainSummary:
    """Fine-tune what the config leaves trainable, and prove that the rest did not change.

    Args:
        overwrite: Replace the run that ``output_dir`` holds.
        resume: Go on with it.

    Raises:
        FinetuneError: any of its kinds.
    """
    shown = progress or Silent()
    ours = False

    def attempt() -> TrainSummary:
        nonlocal ours
        again, ours = ours, True  # what an attempt before this one began is its own
        if resume:
            return _train(config, find_resumed(config, shown), overwrite=False, progress=shown)
        return _train(config, None, overwrite=overwrite or again, progress=shown)

    return dropping_unreadable(attempt, on_unreadable=config.data.on_unreadable, progress=shown)


def _train(
    config: Config, resumed: Resumed | None, *, overwrite: bool, progress: Progress
) -> TrainSummary:
    before_s = 0.0 if resumed is None else resumed.training.record.elapsed_s
    start = time.perf_counter() - before_s
    folder = Path(config.output_dir)
    if resumed is None:
        run_folder.check_usable(folder, overwrite=overwrite)
    with stopping.impatiently(" before the first step; the same command begins again"):
        prepared = prepare(config if resumed is None else resumed.config, progress, resumed)
        report = make_freeze_report(
            prepared.plan,
            prepared.config,
            split=prepared.engine.split,
            num_train=len(prepared.data.train),
            num_val=len(prepared.data.val),
        )
        # Before the folder is touched: a photo that cannot be read costs no earlier run.
        with stopping.patiently():
            training = _source(prepared, progress, training=True)
            validation = _source(prepared, progress, training=False)
    work = prepared.plan.cost.forward_live * prepared.config.data.batch_size
    minutes = prepared.config.train.checkpoint_minutes
    # From here on a signal waits for the end of a step, and leaves a checkpoint.
    after = f" after the last epoch; saved. Go on with: {command(folder)}"
    with stopping.patiently(after):
        if resumed is None:
            run_folder.prepare(folder, overwrite=overwrite)
        else:
            run_folder.reopen(folder, resumed.path)
        _write_facts(prepared, report, folder)
        saver = Saver(folder, prepared.proof.sha256, minutes=minutes)
        with threads_for(work), saver:
            trained = run_epochs(
                *(prepared, training, validation, folder, saver, progress),
                start=start,
                resumed=resumed,
            )
    with stopping.impatiently(after):
        verified = _verify_saved(prepared.proof, folder)
        summary = _summary(prepared, report, trained, verified, time.perf_counter() - start)
        write_text(folder / run_folder.SUMMARY, to_json(summary))
    return summary


def _write_facts(prepared: Prepared, report: FreezeReport, folder: Path) -> None:
    """What is known before the first step."""
    write_text(folder / run_folder.CONFIG, to_yaml(prepared.config))
    write_text(folder / run_folder.FREEZE_JSON, to_json(report))
    write_text(folder / run_folder.FREEZE_TEXT, render_freeze_report(report, verbose=True) + "\n")
    _write_tables(prepared, folder)


def _write_tables(prepared: Prepared, folder: Path) -> None:
    """Who was held out, where that was drawn, and which files were left out."""
    data = prepared.data
    if data.held_out:
        rows = (
            (below(path, data.base), images.class_names[label], split)
            for split, images in (("train", data.train), ("val", data.val))
            for path, label in zip(images.paths, images.labels, strict=True)
        )
        write_csv(folder / run_folder.SPLIT, ("path", "label", "split"), rows)
    if prepared.skipped:
        left_out = ((str(path), reason) for path, reason in prepared.skipped)
        write_csv(folder / run_folder.SKIPPED, ("path", "reason"), left_out)


def _source(prepared: Prepared, progress: Progress, *, training: bool) -> Source:
    config, data = prepared.config, prepared.data
    return make_source(
        prepared.engine,
        config,
        data.train if training else data.val,
        views=training_views(config) if training else Views.of("none"),
        workers=config.data.workers,
        shuffle=training,
        what="training" if training else "validation",
        progress=progress,
        mixing=Mixing.of(config.augment, num_classes=prepared.plan.num_classes, seed=config.seed)
        if training
        else None,
    )


def _scores(val: Evaluation) -> Scores:
    return Scores(val.top1, val.loss, val.balanced_accuracy, val.macro_f1)


def _verify_saved(proof: Proof, folder: Path) -> int:
    """Compare what lies on disk, not what is in memory, with the hashes taken at load."""
    for name in (run_folder.BEST, run_folder.LAST):
        state, _ = load_checkpoint(folder / name)
        proof.verify(state, where=str(folder / name))
    return proof.count


def _summary(
    prepared: Prepared,
    report: FreezeReport,
    trained: Trained,
    verified: int,
    elapsed_s: float,
) -> TrainSummary:
    folder = prepared.config.output_dir
    checkpoint = shlex.quote(str(Path(folder) / run_folder.BEST))
    saved_config = shlex.quote(str(Path(folder) / run_folder.CONFIG))
    return TrainSummary(
        run_dir=folder,
        model=prepared.plan.spec.name,
        weights=prepared.plan.spec.weights,
        head=prepared.plan.spec.family.head,
        class_names=prepared.data.train.class_names,
        num_train=len(prepared.data.train),
        num_val=len(prepared.data.val),
        epochs=prepared.config.train.epochs,
        last_epoch=trained.last.trained.epoch,
        stopped=why_stopped(prepared.config.train, trained.last.trained.epoch),
        monitor=prepared.config.train.monitor,
        best_epoch=trained.best.trained.epoch,
        val=_scores(trained.best.val),
        last=_scores(trained.last.val),
        trainable_parameters=report.totals.trainable + report.adapters.parameters,
        frozen_parameters=report.totals.frozen,
        trainable_tensors=report.totals.trainable_tensors + 2 * report.adapters.weights,
        frozen_tensors=report.totals.frozen_tensors,
        frozen_verified=verified,
        exempt=prepared.proof.exempt,
        adapted=report.adapters.weights,
        resumed_at=trained.resumed_at,
        elapsed_s=elapsed_s,
        peak_memory_mib=peak_memory_mib(),
        rerun=run_folder.rerun_command(Path(folder) / run_folder.CONFIG, folder),
        next=(
            f"finetune eval --checkpoint {checkpoint}",
            f"finetune report {shlex.quote(folder)}",
            f"finetune freeze-report --config {saved_config}",
        ),
    )
