"""``finetune train``: the whole training run, stage by stage."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.checkpoints.checkpointer import Checkpointer
from finetune.checkpoints.run_lock import RunLock
from finetune.config.load import to_yaml
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config
from finetune.config.stages import epochs_of
from finetune.core import signals
from finetune.core.files import write_csv, write_text
from finetune.core.memory import peak_memory_mib, steps_of
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.data.images import below
from finetune.freezing.freeze_report import make_freeze_report, staged_report
from finetune.freezing.frozen_hashes import FrozenHashes
from finetune.report.freeze_report import render_freeze_report
from finetune.report.json_text import to_json
from finetune.results.features import FeatureCounts, total
from finetune.results.freeze import FreezeReport
from finetune.results.train import FoundRates, Scores, StageSummary, TrainSummary
from finetune.training.early_stopping import why_stopped
from finetune.training.evaluate import Evaluation
from finetune.training.fit import RunOutput, StageBatches, Trained, run_epochs
from finetune.training.prepare_stage import (
    CarriedState,
    StageSetup,
    feature_batches_of,
    prepare_stage,
    run_facts,
    stage_facts,
)
from finetune.training.resume import ResumePoint, find_resume_point, resume_command
from finetune.training.setup import RunSetup, set_up_run
from finetune.training.state import EarlierStages
from finetune.tuning.head_rates import find_rates


def train(
    config: Config,
    *,
    overwrite: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainSummary:
    """Fine-tune the parameters that the config leaves trainable, and verify that all frozen
    parameters are unchanged.

    Args:
        overwrite: Whether to replace an existing run in ``output_dir``.
        resume: Whether to resume the run in ``output_dir``.

    Raises:
        FinetuneError: any of its subclasses.
    """
    shown = reporter or SilentReporter()

    def train_once(attempt: int) -> TrainSummary:
        resume_point = find_resume_point(config, shown) if resume else None
        # Later attempts may overwrite what the first one wrote.
        replaces = not resume and (overwrite or attempt > 0)
        return _train(config, resume_point, run_lock, overwrite=replaces, reporter=shown)

    with RunLock(Path(config.output_dir)) as run_lock:
        skip = config.data.on_unreadable
        return dropping_unreadable(train_once, on_unreadable=skip, reporter=shown)


def _train(
    config: Config,
    resume_point: ResumePoint | None,
    run_lock: RunLock,
    *,
    overwrite: bool,
    reporter: Reporter,
) -> TrainSummary:
    before_s = 0.0 if resume_point is None else resume_point.training.record.elapsed_s
    start = time.perf_counter() - before_s
    folder = Path(config.output_dir)
    if resume_point is None:
        run_dir.check_usable(folder, overwrite=overwrite)
    with signals.impatiently(_BEFORE):
        run_setup = set_up_run(config, reporter, resume_point)
    output = RunOutput(folder, start, epochs=epochs_of(run_setup.stages), reporter=reporter)
    run = _Run(run_setup, output, run_lock, overwrite)
    past = EarlierStages() if resume_point is None else EarlierStages.of(resume_point)
    stage: _TrainedStage | None = None
    carried: CarriedState | None = None
    counts: list[FeatureCounts | None] = []
    found_rates: FoundRates | None = None  # of the first stage, unless that was trained before
    for _ in run_setup.stages[len(past.stages) :]:
        stage = None  # frees the previous stage's network before the next one is built
        ready = run.prepare(past, carried, resume_point)
        counts.append(ready.batches.counts)
        found_rates = found_rates or ready.found_rates
        carried = None  # the new network has copies
        stage = run.train_stage(ready, past, resume_point)
        del ready
        past, carried, resume_point = stage.past, stage.carried, None
    assert stage is not None  # a run has at least one stage
    with signals.impatiently(
        f" after the last epoch; saved. Resume with: {resume_command(folder)}"
    ):
        elapsed_s = time.perf_counter() - start
        summary = _summary(stage, total(counts), found_rates, elapsed_s)
        write_text(folder / run_dir.SUMMARY, to_json(summary))
    return summary


_BEFORE = " before the first step; run the same command to start over"


@dataclass(frozen=True)
class _ReadyStage:
    """A stage before its first step."""

    stage_setup: StageSetup
    report: FreezeReport
    batches: StageBatches
    found_rates: FoundRates | None


@dataclass(frozen=True)
class _TrainedStage:
    """A stage after its last epoch.

    Attributes:
        reports: Freeze reports of all stages.
        verified: Frozen hashes of the tensors that no stage so far has trained.
        past: Results of the stages so far, including this one.
        carried: Weights for the next stage; None after the last.
    """

    stage_setup: StageSetup
    reports: Sequence[FreezeReport]
    trained: Trained
    verified: FrozenHashes
    past: EarlierStages
    carried: CarriedState | None


@dataclass(frozen=True)
class _Run:
    """Objects shared by all stages of a run."""

    run_setup: RunSetup
    output: RunOutput
    run_lock: RunLock
    overwrite: bool

    def prepare(
        self,
        past: EarlierStages,
        carried: CarriedState | None,
        resume_point: ResumePoint | None,
    ) -> _ReadyStage:
        """Set up the next stage and compute its features; nothing is written to the run directory,
        so that an unreadable photo destroys no earlier run.
        """
        number, reporter = len(past.stages), self.output.reporter
        goes_on = f"Resume with: {resume_command(self.output.folder)}"
        before = _BEFORE if carried is None else f" before stage {number + 1}. {goes_on}"
        with signals.impatiently(before):
            stage_setup = prepare_stage(
                self.run_setup, reporter, number=number, carried=carried, resume_point=resume_point
            )
            with signals.patiently():
                training = feature_batches_of(stage_setup, reporter, training=True)
                validation = None
                if len(stage_setup.data.val):
                    validation = feature_batches_of(
                        stage_setup,
                        reporter,
                        training=False,
                        both_views=stage_setup.config.model.average_mirror,
                    )
            batches = StageBatches(training, validation)
            if batches.counts is not None:
                reporter.say(batches.counts.in_words)
            # A later stage's rates would be lost by a resume, which starts from planned configs.
            keys = () if number else self.run_setup.auto_rates
            found = find_rates(stage_setup, training, keys, reporter)
            if found is not None:
                stage_setup = stage_setup.with_rates(number, found)
        return _ReadyStage(stage_setup, _report(stage_setup), batches, found)

    def train_stage(
        self, ready: _ReadyStage, past: EarlierStages, resume_point: ResumePoint | None
    ) -> _TrainedStage:
        """Train a stage, verify its frozen tensors and summarize it."""
        stage_setup, folder, number = ready.stage_setup, self.output.folder, len(past.stages)
        work = stage_setup.plan.cost.forward_trainable * stage_setup.config.data.batch_size
        minutes = stage_setup.config.train.checkpoint_minutes
        # From here on, a signal takes effect after the current step and saves a checkpoint.
        is_last = number + 1 == len(self.run_setup.stages)
        end = "the last epoch" if is_last else f"stage {number + 1}"
        after = f" after {end}; saved. Resume with: {resume_command(folder)}"
        with signals.patiently(after):
            if resume_point is not None:
                run_dir.reopen(folder, resume_point.path)
            elif not number:
                run_dir.prepare(folder, overwrite=self.overwrite)
                self.run_lock.take()  # prepare() may have created the folder
            reports = self._write_facts(stage_setup, ready.report, number)
            checkpointer = Checkpointer(folder, stage_setup.frozen_hashes.sha256, minutes=minutes)
            with steps_of(work), checkpointer:
                trained = run_epochs(
                    stage_setup,
                    ready.batches,
                    self.output,
                    checkpointer,
                    past=past,
                    resume_point=resume_point,
                )
        with signals.impatiently(after):
            verified = self._verify(stage_setup, past, trained)
            return _TrainedStage(
                stage_setup=stage_setup,
                reports=reports,
                trained=trained,
                verified=verified,
                past=EarlierStages(
                    stages=(*past.stages, self._summary_of(ready, past, trained)),
                    records=tuple(trained.state.records),
                    frozen=verified.sha256,
                    best=trained.best,
                    optimizer_state=trained.state.optimizer_state(),
                    resumed_at=trained.state.resumed_at,
                ),
                carried=None if is_last else trained.state.carried(),
            )

    def _write_facts(
        self, stage_setup: StageSetup, report: FreezeReport, number: int
    ) -> list[FreezeReport]:
        """Write the config, tables and freeze report that are known before a stage's first step.

        Returns:
            Freeze reports of all stages in the first and in the last stage, otherwise empty.
        """
        folder, stages = self.output.folder, stage_setup.run_config.stages
        reports: list[FreezeReport] = []
        if number in (0, len(stages) - 1):
            reports = [
                report if at == number else self._planned(at, config)
                for at, config in enumerate(stages)
            ]
            shown = staged_report(reports, [config.train.epochs for config in stages])
            write_text(folder / run_dir.FREEZE_JSON, to_json(shown))
            text = render_freeze_report(shown, verbose=True)
            write_text(folder / run_dir.FREEZE_TEXT, f"{text}\n")
        write_text(folder / run_dir.CONFIG, to_yaml(stage_setup.run_config.saved_at(number)))
        _write_tables(stage_setup, folder)
        return reports

    def _planned(self, number: int, config: PlannedConfig) -> FreezeReport:
        plan, data = self.run_setup.plans[number], self.run_setup.data
        sizes = len(data.train), len(data.val)
        return make_freeze_report(
            plan, config, config.optimizer, num_train=sizes[0], num_val=sizes[1]
        )

    def _verify(
        self, stage_setup: StageSetup, past: EarlierStages, trained: Trained
    ) -> FrozenHashes:
        """Compare the checkpoints on disk with the hashes taken at the start of the stage.

        After the last stage, also compare them with the hashes taken at the start of the run.
        """
        frozen_hashes, folder = stage_setup.frozen_hashes, self.output.folder
        is_of_this_stage = trained.best.stage == len(past.stages) + 1
        for name in (run_dir.BEST, run_dir.LAST) if is_of_this_stage else (run_dir.LAST,):
            _verify_saved(frozen_hashes, folder / name)
        if past.frozen is None:
            return frozen_hashes
        throughout = frozen_hashes.as_begun(past.frozen)
        if len(past.stages) + 1 == len(self.run_setup.stages):
            for name in (run_dir.BEST, run_dir.LAST):
                _verify_saved(throughout, folder / name)
        return throughout

    def _summary_of(
        self, ready: _ReadyStage, past: EarlierStages, trained: Trained
    ) -> StageSummary:
        stage_setup = ready.stage_setup
        epoch, here = trained.last.trained.epoch, trained.best_here
        elapsed_s = time.perf_counter() - self.output.start
        return StageSummary(
            **vars(stage_facts(stage_setup.config, ready.report, number=len(past.stages) + 1)),
            first_epoch=epoch - trained.number + 1,
            last_epoch=epoch,
            best_epoch=here.trained.epoch if here.val else None,
            val=_scores(here.val),
            stopped=why_stopped(stage_setup.config.train, trained.number),
            frozen_verified=stage_setup.frozen_hashes.count,
            state_kept=trained.state.state_kept,
            exempt=stage_setup.frozen_hashes.exempt,
            elapsed_s=elapsed_s - sum(stage.elapsed_s for stage in past.stages),
        )


def _report(stage_setup: StageSetup) -> FreezeReport:
    return make_freeze_report(
        stage_setup.plan,
        stage_setup.config,
        stage_setup.config.optimizer,
        split=stage_setup.engine.split,
        num_train=len(stage_setup.data.train),
        num_val=len(stage_setup.data.val),
    )


def _write_tables(stage_setup: StageSetup, folder: Path) -> None:
    """Write the drawn train/val split, if there is one, and the list of skipped files."""
    data = stage_setup.data
    if data.held_out:
        rows = (
            (below(path, data.base), images.class_names[label], split)
            for split, images in (("train", data.train), ("val", data.val))
            for path, label in zip(images.paths, images.labels, strict=True)
        )
        write_csv(folder / run_dir.SPLIT, ("path", "label", "split"), rows)
    if stage_setup.skipped:
        left_out = ((str(path), reason) for path, reason in stage_setup.skipped)
        write_csv(folder / run_dir.SKIPPED, ("path", "reason"), left_out)


def _scores(val: Evaluation | None) -> Scores | None:
    if val is None:
        return None
    return Scores(val.top1, val.loss, val.balanced_accuracy, val.macro_f1)


def _verify_saved(frozen_hashes: FrozenHashes, path: Path) -> None:
    state, _ = load_checkpoint(path)
    frozen_hashes.verify(state, where=str(path))


def _summary(
    stage: _TrainedStage,
    features: FeatureCounts | None,
    found_rates: FoundRates | None,
    elapsed_s: float,
) -> TrainSummary:
    stage_setup, trained, past = stage.stage_setup, stage.trained, stage.past
    folder = stage_setup.config.output_dir
    return TrainSummary(
        **vars(run_facts(stage_setup, stage.reports)),
        epochs=sum(one.epochs for one in past.stages),
        last_epoch=trained.last.trained.epoch,
        stopped=past.stages[-1].stopped,
        monitor=stage_setup.config.train.monitor,
        best_epoch=trained.best.trained.epoch if trained.best.val else None,
        val=_scores(trained.best.val),
        last=_scores(trained.last.val),
        frozen_verified=stage.verified.count,
        exempt=tuple(dict.fromkeys(name for one in past.stages for name in one.exempt)),
        adapted=max((it.adapters for it in stage.reports), key=lambda it: it.parameters).weights,
        resumed_at=past.resumed_at,
        stages=past.stages,
        elapsed_s=elapsed_s,
        features=features,
        found_rates=found_rates,
        peak_memory_mib=peak_memory_mib(),
        rerun=run_dir.rerun_command(Path(folder) / run_dir.CONFIG, folder),
        next=next_commands(folder, has_val=trained.last.val is not None),
    )


def next_commands(folder: str, *, has_val: bool) -> tuple[str, ...]:
    """Return the commands that look at a finished run."""
    checkpoint = shlex.quote(str(Path(folder) / run_dir.BEST))
    saved_config = shlex.quote(str(Path(folder) / run_dir.CONFIG))
    judged = (
        f"finetune eval --checkpoint {checkpoint}",
        run_dir.report_command(folder),
    )
    return (*(judged if has_val else ()), f"finetune freeze-report --config {saved_config}")
