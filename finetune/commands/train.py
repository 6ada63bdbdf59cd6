"""``finetune train``: the one place that knows the whole flow."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune import run_folder, stopping
from finetune.checkpoint import load_checkpoint
from finetune.claim import Claim
from finetune.commands.epochs import Trained, run_epochs
from finetune.commands.preparation import Prepared, prepare, source_of, stage_facts
from finetune.commands.resuming import Resumed, command, find_resumed
from finetune.commands.settling import Settled, settle
from finetune.commands.underway import Past
from finetune.config import Config
from finetune.config_file import to_yaml
from finetune.data.images import below
from finetune.data.quick_check import dropping_unreadable
from finetune.evaluate import Evaluation
from finetune.files import write_csv, write_text
from finetune.monitor import why_stopped
from finetune.planning import make_freeze_report, totals_of
from finetune.progress import Progress, Silent
from finetune.proof import Proof
from finetune.report.json_text import to_json
from finetune.report.text import render_freeze_report
from finetune.results import FreezeReport, Scores, TrainSummary
from finetune.runtime import peak_memory_mib, steps_of
from finetune.saving import Saver
from finetune.stage_results import StageSummary
from finetune.stages import epochs_of, stage_configs, staged_report


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
        resumed = find_resumed(config, shown) if resume else None
        replaces = not resume and (overwrite or again)
        return _train(config, resumed, claim, overwrite=replaces, progress=shown)

    with Claim(Path(config.output_dir)) as claim:
        return dropping_unreadable(attempt, on_unreadable=config.data.on_unreadable, progress=shown)


def _train(
    config: Config, resumed: Resumed | None, claim: Claim, *, overwrite: bool, progress: Progress
) -> TrainSummary:
    before_s = 0.0 if resumed is None else resumed.training.record.elapsed_s
    start = time.perf_counter() - before_s
    folder = Path(config.output_dir)
    if resumed is None:
        run_folder.check_usable(folder, overwrite=overwrite)
    with stopping.impatiently(_BEFORE):
        settled = settle(config if resumed is None else resumed.config, progress, resumed)
    run = _Run(settled, folder, claim, start, overwrite, progress)
    past = Past() if resumed is None else Past.of(resumed)
    latest: list[_Latest] = []
    for _ in settled.stages[len(past.stages) :]:
        past = run.train_stage(past, latest, resumed)
        resumed = None
    with stopping.impatiently(f" after the last epoch; saved. Go on with: {command(folder)}"):
        summary = _summary(latest[0], past, time.perf_counter() - start)
        write_text(folder / run_folder.SUMMARY, to_json(summary))
    return summary


_BEFORE = " before the first step; the same command begins again"


@dataclass(frozen=True)
class _Latest:
    """The stage that was trained last.

    Attributes:
        reports: Of all stages.
        verified: What no stage thawed.
    """

    prepared: Prepared
    reports: Sequence[FreezeReport]
    trained: Trained
    verified: Proof


@dataclass(frozen=True)
class _Run:
    """What the stages of a run have in common.

    Attributes:
        start: By this process's clock, earlier processes counted in.
    """

    settled: Settled
    folder: Path
    claim: Claim
    start: float
    overwrite: bool
    progress: Progress

    def train_stage(self, past: Past, latest: list[_Latest], resumed: Resumed | None) -> Past:
        """Train the next stage as if it were alone, and return what it leaves behind with what was
        there.

        Args:
            latest: Holds the stage before, which is taken out and let go of; then this one.
        """
        settled, folder, number = self.settled, self.folder, len(past.stages)
        goes_on = f"Go on with: {command(folder)}"
        before = f" before stage {number + 1}. {goes_on}" if latest else _BEFORE
        with stopping.impatiently(before):
            carried = latest.pop().trained.under_way.carried() if latest else None
            prepared = prepare(
                settled, self.progress, number=number, carried=carried, resumed=resumed
            )
            del carried  # the model has copies
            report = _report(prepared)
            # Before the folder is touched: a photo that cannot be read costs no earlier run.
            with stopping.patiently():
                training = source_of(prepared, self.progress, training=True)
                validation = None
                if len(prepared.data.val):
                    validation = source_of(prepared, self.progress, training=False)
        work = prepared.plan.cost.forward_live * prepared.config.data.batch_size
        minutes = prepared.config.train.checkpoint_minutes
        # From here on a signal waits for the end of a step, and leaves a checkpoint.
        is_last = number + 1 == len(settled.stages)
        end = "the last epoch" if is_last else f"stage {number + 1}"
        after = f" after {end}; saved. {goes_on}"
        with stopping.patiently(after):
            if resumed is not None:
                run_folder.reopen(folder, resumed.path)
            elif not number:
                run_folder.prepare(folder, overwrite=self.overwrite)
                self.claim.take()  # of a folder that is new
            reports = self._write_facts(prepared, report, number)
            saver = Saver(folder, prepared.proof.sha256, minutes=minutes)
            with steps_of(work), saver:
                trained = run_epochs(
                    *(prepared, training, validation, folder, saver, self.progress),
                    start=self.start,
                    total=epochs_of(settled.stages),
                    past=past,
                    resumed=resumed,
                )
        with stopping.impatiently(after):
            verified = self._verify(prepared, past, trained)
            latest.append(_Latest(prepared, reports, trained, verified))
            return self._left_behind(past, latest[0], report)

    def _write_facts(
        self, prepared: Prepared, report: FreezeReport, number: int
    ) -> list[FreezeReport]:
        """What is known before a stage's first step.

        Returns:
            In the first and in the last stage the freeze report of all, as planned, and as they
            became.
        """
        folder, stages = self.folder, stage_configs(prepared.config)
        reports: list[FreezeReport] = []
        if number in (0, len(stages) - 1):
            reports = [
                report if at == number else self._planned(at, config)
                for at, config in enumerate(stages)
            ]
            shown = staged_report(reports, stages)
            write_text(folder / run_folder.FREEZE_JSON, to_json(shown))
            text = render_freeze_report(shown, verbose=True)
            write_text(folder / run_folder.FREEZE_TEXT, f"{text}\n")
        write_text(folder / run_folder.CONFIG, to_yaml(prepared.config))
        _write_tables(prepared, folder)
        return reports

    def _planned(self, number: int, config: Config) -> FreezeReport:
        plan, data = self.settled.plans[number], self.settled.data
        sizes = len(data.train), len(data.val)
        return make_freeze_report(plan, config, num_train=sizes[0], num_val=sizes[1])

    def _verify(self, prepared: Prepared, past: Past, trained: Trained) -> Proof:
        """Compare what lies on disk, not what is in memory, with the hashes taken at the stage's
        start; in the last stage, with those that were taken when the run began as well."""
        proof, folder = prepared.proof, self.folder
        is_of_this_stage = trained.best.stage == len(past.stages) + 1
        for name in (run_folder.BEST, run_folder.LAST) if is_of_this_stage else (run_folder.LAST,):
            _verify_saved(proof, folder / name)
        if past.unchanged is None:
            return proof
        throughout = proof.as_begun(past.unchanged)
        if len(past.stages) + 1 == len(self.settled.stages):
            for name in (run_folder.BEST, run_folder.LAST):
                _verify_saved(throughout, folder / name)
        return throughout

    def _left_behind(self, past: Past, latest: _Latest, report: FreezeReport) -> Past:
        prepared, trained = latest.prepared, latest.trained
        epoch, here = trained.last.trained.epoch, trained.best_here
        elapsed_s = time.perf_counter() - self.start
        summary = StageSummary(
            **vars(stage_facts(prepared.config, report, number=len(past.stages) + 1)),
            first_epoch=epoch - trained.number + 1,
            last_epoch=epoch,
            best_epoch=here.trained.epoch if here.val else None,
            val=_scores(here.val),
            stopped=why_stopped(prepared.config.train, trained.number),
            frozen_verified=prepared.proof.count,
            state_kept=trained.under_way.state_kept,
            exempt=prepared.proof.exempt,
            elapsed_s=elapsed_s - sum(stage.elapsed_s for stage in past.stages),
        )
        return Past(
            (*past.stages, summary),
            tuple(trained.under_way.records),
            latest.verified.sha256,
            trained.best,
            trained.under_way.memory(),
            trained.under_way.resumed_at,
        )


def _report(prepared: Prepared) -> FreezeReport:
    return make_freeze_report(
        prepared.plan,
        prepared.config,
        split=prepared.engine.split,
        num_train=len(prepared.data.train),
        num_val=len(prepared.data.val),
    )


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


def _scores(val: Evaluation | None) -> Scores | None:
    if val is None:
        return None
    return Scores(val.top1, val.loss, val.balanced_accuracy, val.macro_f1)


def _verify_saved(proof: Proof, path: Path) -> None:
    state, _ = load_checkpoint(path)
    proof.verify(state, where=str(path))


def _summary(latest: _Latest, past: Past, elapsed_s: float) -> TrainSummary:
    prepared, trained = latest.prepared, latest.trained
    folder = prepared.config.output_dir
    checkpoint = shlex.quote(str(Path(folder) / run_folder.BEST))
    saved_config = shlex.quote(str(Path(folder) / run_folder.CONFIG))
    judged = (
        f"finetune eval --checkpoint {checkpoint}",
        f"finetune report {shlex.quote(folder)}",
    )
    totals = totals_of(latest.reports)
    adapters = max((report.adapters for report in latest.reports), key=lambda it: it.parameters)
    return TrainSummary(
        run_dir=folder,
        model=prepared.plan.spec.name,
        weights=prepared.plan.spec.weights,
        head=prepared.plan.spec.family.head,
        class_names=prepared.data.train.class_names,
        num_train=len(prepared.data.train),
        num_val=len(prepared.data.val),
        epochs=sum(stage.epochs for stage in past.stages),
        last_epoch=trained.last.trained.epoch,
        stopped=past.stages[-1].stopped,
        monitor=prepared.config.train.monitor,
        best_epoch=trained.best.trained.epoch if trained.best.val else None,
        val=_scores(trained.best.val),
        last=_scores(trained.last.val),
        trainable_parameters=totals.trainable + adapters.parameters,
        frozen_parameters=totals.frozen,
        trainable_tensors=totals.trainable_tensors + 2 * adapters.weights,
        frozen_tensors=totals.frozen_tensors,
        frozen_verified=latest.verified.count,
        exempt=tuple(dict.fromkeys(name for stage in past.stages for name in stage.exempt)),
        adapted=adapters.weights,
        resumed_at=past.resumed_at,
        stages=past.stages,
        elapsed_s=elapsed_s,
        peak_memory_mib=peak_memory_mib(),
        rerun=run_folder.rerun_command(Path(folder) / run_folder.CONFIG, folder),
        next=(
            *(judged if trained.last.val else ()),
            f"finetune freeze-report --config {saved_config}",
        ),
    )
