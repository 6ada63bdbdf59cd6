"""``finetune train``: the whole training run, stage by stage."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.checkpoints.checkpointer import Checkpointer
from finetune.checkpoints.run_lock import RunLock
from finetune.checkpoints.safe_load import copy_module_versions
from finetune.commands.fit_limits import add_limits
from finetune.commands.tracking import send_results
from finetune.config.load import to_yaml
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config
from finetune.config.stages import epochs_of
from finetune.core import signals
from finetune.core.errors import Interrupted
from finetune.core.files import exists, write_csv, write_text
from finetune.core.memory import peak_gpu_memory_mib, peak_memory_mib, steps_of
from finetune.core.reporter import LoggingReporter, Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.data.images import below
from finetune.distributed.group import ONE_PROCESS, Group, alone
from finetune.distributed.ranks import ALONE
from finetune.freezing.freeze_report import make_freeze_report, staged_report
from finetune.freezing.frozen_hashes import FrozenHashes
from finetune.inference.confidence_intervals import wilson
from finetune.report.freeze_report import render_freeze_report
from finetune.report.json_text import to_json
from finetune.report.layout import plain
from finetune.results.caveats import Caveat, ScoredPhotos, caveats_of
from finetune.results.evaluation import Interval
from finetune.results.features import FeatureCounts, total
from finetune.results.freeze import FreezeReport
from finetune.results.train import FoundRates, Scores, StageSummary, TrainSummary
from finetune.training.early_stopping import why_stopped
from finetune.training.epoch_record import Epoch
from finetune.training.evaluate import Evaluation
from finetune.training.fit import RunOutput, StageBatches, Trained, run_epochs
from finetune.training.optimizer_state import OptimizerState
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
from finetune.training.trackers import TrackedRun, Trackers, flat
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
    summary = train_in_group(
        config, ONE_PROCESS, overwrite=overwrite, resume=resume, reporter=reporter
    )
    assert summary is not None  # that of the first process
    return summary


def train_in_group(
    config: Config,
    group: Group,
    *,
    overwrite: bool = False,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainSummary | None:
    """Like `train`, in one of several processes that train together.

    Args:
        group: What `finetune.distributed.group.joined` returns.

    Returns:
        The summary in the first process, None in the others.

    Raises:
        FinetuneError: any of its subclasses.
    """
    shown = LoggingReporter(
        reporter if reporter is not None and group.is_first else SilentReporter()
    )
    folder = Path(config.output_dir)

    resumes = resume

    def train_once(attempt: int) -> TrainSummary | None:
        nonlocal resumes
        replaces = overwrite
        if attempt:  # overwrites what the first attempt wrote
            replaces = not resumes
        elif group.are_several and not resume:
            is_restart = _is_restart(group)
            resumes, replaces = group.first(
                lambda: _after_restart(folder, overwrite=overwrite, is_restart=is_restart)
            )
        resume_point = None
        if resumes:
            with group.first_before_others():
                resume_point = find_resume_point(config, shown)
        return _train(config, group, resume_point, run_lock, overwrite=replaces, reporter=shown)

    run_lock = RunLock(folder)
    with run_lock if group.is_first else nullcontext():
        skip = config.data.on_unreadable
        return dropping_unreadable(
            train_once,
            on_unreadable=skip,
            reporter=shown,
            decide=lambda inspect: group.first(inspect, list[Path]),
        )


def _after_restart(folder: Path, *, overwrite: bool, is_restart: bool) -> tuple[bool, bool]:
    """Return whether to resume the run in a folder, and whether to overwrite it.

    A launcher that restarts killed processes repeats the command that began the run. The run is
    then resumed; if there is no checkpoint yet, it begins again.
    """
    if not is_restart:
        # The name of an earlier launch may be the same, as torchrun's is by default.
        with suppress(OSError):  # there is no such folder
            (folder / run_dir.LAUNCH).unlink()
        return False, overwrite
    if not run_dir.was_launched_as(folder, _launch()):
        return False, overwrite
    checkpoints = (folder / name for name in (run_dir.LAST, run_dir.PREVIOUS))
    return any(map(exists, checkpoints)), True


def _launch() -> str:
    """Return the name of the launch of this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "none")


def _is_restart(group: Group) -> bool:
    """Return whether a launcher has restarted the processes; machines may count differently."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "FINETUNE_RESTART_COUNT")
    return any(group.gather(any(os.environ.get(name, "0") != "0" for name in counts)))


def _train(
    config: Config,
    group: Group,
    resume_point: ResumePoint | None,
    run_lock: RunLock,
    *,
    overwrite: bool,
    reporter: LoggingReporter,
) -> TrainSummary | None:
    before_s = 0.0 if resume_point is None else resume_point.training.record.elapsed_s
    start = time.perf_counter() - before_s
    folder = Path(config.output_dir)
    if resume_point is None:
        group.first(partial(run_dir.check_usable, folder, overwrite=overwrite))
    with signals.impatiently(_BEFORE):
        run_setup = set_up_run(config, reporter, resume_point)
    with _trackers(run_setup, reporter) if group.is_first else nullcontext() as trackers:
        output = RunOutput(
            folder, start, epochs_of(run_setup.stages), reporter, trackers, writes=group.is_first
        )
        run = _Run(run_setup, output, reporter, run_lock, overwrite, group)
        summary = _train_stages(run, resume_point)
        if summary is not None and trackers is not None:
            send_results(trackers, config, summary, reporter)
    return summary


def _trackers(run_setup: RunSetup, reporter: Reporter) -> Trackers:
    """Return the trackers of the config, with the run's description."""
    config = run_setup.run_config.given
    folder = Path(config.output_dir)
    # The runs of a ladder are named after the ladder, too.
    name = "/".join(folder.parts[-2:]) if folder.parent.name.endswith("-ladder") else folder.name
    track = config.track
    run = TrackedRun(
        folder,
        project="" if track is None else track.project,
        name=name if track is None or track.name is None else track.name,
        config=flat(config.plain()),
    )
    return Trackers(track, run, reporter)


def _train_stages(run: _Run, resume_point: ResumePoint | None) -> TrainSummary | None:
    """Train the stages that are left, and return the summary in the first process."""
    run_setup, output, group = run.run_setup, run.output, run.group
    folder = output.folder
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
        if group.is_first or not ready.is_for_one_process:
            stage = run.train_stage(ready, past, resume_point)
            past, carried = stage.past, stage.carried
        if ready.is_for_one_process:
            past, carried = _handed_over(group, stage, ready.stage_setup)
        del ready
        resume_point = None
    if stage is None or not group.is_first:
        return None
    with signals.impatiently(
        f" after the last epoch; saved. Resume with: {resume_command(folder)}"
    ):
        if stage.trained.last.val is not None:
            is_of_last_stage = stage.trained.best.stage == len(past.stages)
            with alone():
                add_limits(
                    folder / run_dir.BEST,
                    stage.stage_setup,
                    output.reporter,
                    # Layers shared with other processes would wait for them.
                    reuses_network=is_of_last_stage
                    and not group.are_several
                    and stage.stage_setup.config.adapt is None,
                )
        elapsed_s = time.perf_counter() - output.start
        caveats = _caveats(run_setup, past, has_val=stage.trained.last.val is not None)
        summary = _summary(stage, total(counts), found_rates, elapsed_s, caveats)
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
    is_for_one_process: bool
    """Whether only the first of several processes trains the stage."""


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
    log: LoggingReporter
    run_lock: RunLock
    overwrite: bool
    group: Group

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
            alone = self.group.are_several and stage_setup.is_for_one_process
            ranks = ALONE if alone else self.group.ranks
            if self.group.are_several:
                self._compare(stage_setup, alone=alone)
            if ranks.are_several:
                stage_setup.share_layers()
            with signals.patiently():
                training = feature_batches_of(stage_setup, reporter, training=True, ranks=ranks)
                validation = None
                if len(stage_setup.data.val):
                    validation = feature_batches_of(
                        stage_setup,
                        reporter,
                        training=False,
                        both_views=stage_setup.config.model.average_mirror,
                        ranks=ranks,
                    )
            batches = StageBatches(training, validation)
            if batches.counts is not None:
                reporter.say(batches.counts.in_words)
            # A later stage's rates would be lost by a resume, which starts from planned configs.
            keys = () if number else self.run_setup.auto_rates
            found = self.group.first(
                lambda: find_rates(stage_setup, training, keys, reporter), FoundRates | None
            )
            if found is not None:
                stage_setup = stage_setup.with_rates(number, found)
        return _ReadyStage(stage_setup, _report(stage_setup), batches, found, alone)

    def _compare(self, stage_setup: StageSetup, *, alone: bool) -> None:
        """Compare what the processes are about to train, and say how they share it.

        Raises:
            FinetuneError: they differ.
        """
        plan, config = stage_setup.plan, stage_setup.config
        self.group.refuse_differences(
            configs=config.model_dump_json(),
            **{"frozen parameters": " ".join(sorted(plan.frozen))},
            **{"weights of frozen parameters": stage_setup.frozen_hashes.digest},
            classes=json.dumps(stage_setup.data.train.class_names),
        )
        size = self.group.ranks.size
        if alone:
            how = "the first one trains, since a step takes no longer than an exchange"
        else:
            per_step = config.data.batch_size * config.train.accumulate
            how = f"each computes about {per_step / size:.3g} of the {per_step} images of a step"
        self.output.reporter.say(f"{size} processes: {how}")

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
        group = ONE_PROCESS if ready.is_for_one_process else self.group
        with signals.patiently(after):
            reports: Sequence[FreezeReport] = ()
            if self.output.writes:
                reports = self._open_folder(ready, number, resume_point)
            checkpointer = Checkpointer(
                folder,
                stage_setup.frozen_hashes.sha256,
                minutes=minutes,
                writes=self.output.writes,
            )
            together = signals.together() if group.are_several else nullcontext()
            try:
                with together, steps_of(work), checkpointer:
                    trained = run_epochs(
                        stage_setup,
                        ready.batches,
                        self.output,
                        checkpointer,
                        past=past,
                        resume_point=resume_point,
                        group=group,
                    )
            except Interrupted:
                # A launcher ends all processes when one has ended; the first may still be saving.
                group.barrier()
                raise
        with signals.impatiently(after):
            self.output.reporter.status("verifying the frozen weights")
            verified = stage_setup.frozen_hashes
            if self.output.writes:
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

    def _open_folder(
        self, ready: _ReadyStage, number: int, resume_point: ResumePoint | None
    ) -> Sequence[FreezeReport]:
        """Prepare the run directory for a stage, and write what is known before its first step."""
        folder = self.output.folder
        if resume_point is not None:
            run_dir.reopen(folder, resume_point.path)
        elif not number:
            launch = _launch() if self.group.are_several else None
            run_dir.prepare(folder, overwrite=self.overwrite, launch=launch)
            self.run_lock.take()  # prepare() may have created the folder
        if resume_point is not None or not number:
            self.log.write_to(folder / run_dir.LOG)
        return self._write_facts(ready.stage_setup, ready.report, number)

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
            text = plain(render_freeze_report(shown))
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


def _handed_over(
    group: Group, stage: _TrainedStage | None, stage_setup: StageSetup
) -> tuple[EarlierStages, CarriedState | None]:
    """Return, in all processes, the results of a stage that the first one has trained alone.

    Args:
        stage: The trained stage, in the first process.
    """
    optimizer = None if stage is None else stage.past.optimizer_state
    carried = None if stage is None else stage.carried
    known = None if stage is None else _Past.of(stage.past)
    past, is_last, numbers = group.first(
        lambda: (known, carried is None, optimizer.numbers if optimizer else {}),
        tuple[_Past | None, bool, dict[str, float | int | bool]],
    )
    moments = group.tensors_of_first(None if optimizer is None else optimizer.tensors)
    weights = group.tensors_of_first(None if carried is None else carried.state)
    if stage is not None:
        return stage.past, carried
    assert past is not None  # sent by the first process
    like = stage_setup.optimizer_of(stage_setup.config.optimizer)
    state = replace(OptimizerState.of(like, ()), tensors=moments, numbers=numbers)
    kept = OrderedDict(weights)
    copy_module_versions(stage_setup.model.state_dict(), kept)
    return (
        EarlierStages(**vars(past), optimizer_state=state),
        None if is_last else CarriedState(kept, stage_setup.run_config),
    )


@dataclass(frozen=True)
class _Past:
    """Fields of `EarlierStages` that cross to other processes as JSON."""

    stages: tuple[StageSummary, ...]
    records: tuple[dict[str, Any], ...]
    frozen: dict[str, str] | None
    best: Epoch | None
    resumed_at: tuple[str, ...]

    @classmethod
    def of(cls, past: EarlierStages) -> _Past:
        return cls(**{name: getattr(past, name) for name in cls.__dataclass_fields__})


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
    """Write the drawn split, the corrections and the skipped files, where there are any."""
    data = stage_setup.data
    if data.held_out:
        rows = (
            (below(path, data.base), images.class_names[label], split)
            for split, images in (("train", data.train), ("val", data.val))
            for path, label in zip(images.paths, images.labels, strict=True)
        )
        write_csv(folder / run_dir.SPLIT, ("path", "label", "split"), rows)
    if data.corrected:
        write_csv(folder / run_dir.CORRECTIONS, ("path", "action", "label"), data.corrected)
    if stage_setup.skipped:
        left_out = ((str(path), reason) for path, reason in stage_setup.skipped)
        write_csv(folder / run_dir.SKIPPED, ("path", "reason"), left_out)


def _scores(val: Evaluation | None) -> Scores | None:
    if val is None:
        return None
    return Scores(val.top1, val.loss, val.balanced_accuracy, val.macro_f1)


def _interval(val: Evaluation | None, stage_setup: StageSetup) -> Interval | None:
    """Return Wilson's interval of the top-1; None for images in groups, where it is too narrow."""
    grouped = stage_setup.data.val.groups or stage_setup.config.data.group_pattern
    if val is None or grouped:
        return None
    return wilson(round(val.top1 * val.num_images), val.num_images)


def _verify_saved(frozen_hashes: FrozenHashes, path: Path) -> None:
    state, _ = load_checkpoint(path)
    frozen_hashes.verify(state, where=str(path))


def _summary(
    stage: _TrainedStage,
    features: FeatureCounts | None,
    found_rates: FoundRates | None,
    elapsed_s: float,
    caveats: tuple[Caveat, ...],
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
        top1_interval=_interval(trained.best.val, stage_setup),
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
        peak_gpu_memory_mib=peak_gpu_memory_mib(stage_setup.engine.device),
        rerun=run_dir.rerun_command(Path(folder) / run_dir.CONFIG, folder),
        next=next_commands(folder, has_val=trained.last.val is not None),
        chosen_on_validation=_chosen(past) if trained.last.val is not None else (),
        caveats=caveats,
    )


def _caveats(run_setup: RunSetup, past: EarlierStages, *, has_val: bool) -> tuple[Caveat, ...]:
    """Return what limits what the validation accuracy says about new photos."""
    if not has_val:
        return ()
    val, copies = run_setup.data.val, run_setup.checked.copies
    return caveats_of(
        ScoredPhotos(
            noun="validation",
            counts=dict(zip(val.class_names, val.counts(), strict=True)),
            leaked=len(copies.leaked),
            alike=len(copies.alike),
            in_two_classes=copies.in_two_classes,
            corrected=run_setup.data.num_relabelled(val),
            chose=_chosen(past),
        )
    )


def _chosen(past: EarlierStages) -> tuple[str, ...]:
    """Return what was chosen by the accuracy on the validation images."""
    return ("the epoch",) if len(past.records) > 1 else ()


def next_commands(folder: str, *, has_val: bool) -> tuple[str, ...]:
    """Return the commands that look at a finished run."""
    run = shlex.quote(folder)
    judged = f"finetune eval {run}", run_dir.report_command(folder)
    return (*(judged if has_val else ()), f"finetune freeze-report {run}")
