"""Epochs of a stage: train, evaluate, record, checkpoint and report; interrupt and resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from finetune.checkpoints.checkpointer import Checkpointer
from finetune.config.schema import Config
from finetune.config.stages import epochs_of, planned_stages
from finetune.core import signals
from finetune.core.errors import CheckpointError, Interrupted, NotFiniteError, ResultError
from finetune.core.files import append_line, write_text
from finetune.core.reporter import Reporter
from finetune.core.seeding import seed_for
from finetune.core.text import plural
from finetune.data.images import shown_few
from finetune.distributed.group import ONE_PROCESS, Group
from finetune.distributed.verdict import StepStopped, Verdict
from finetune.features.both_views import averaging
from finetune.features.source import FeatureBatch, FeatureBatches
from finetune.freezing.lora import merged
from finetune.results.features import FeatureCounts, total
from finetune.training.early_stopping import EarlyStopping
from finetune.training.epoch_record import Epoch
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, EpochResult, Sharing, train_epochs
from finetune.training.prepare_stage import StageSetup
from finetune.training.resume import ResumePoint, resume_command
from finetune.training.state import EarlierStages, TrainState
from finetune.training.trackers import Trackers


@dataclass(frozen=True)
class Trained:
    """Result of the epochs of a stage.

    Attributes:
        best: Best epoch of the run so far, earlier stages included.
        best_here: Best epoch of this stage.
        last: Last epoch of this stage.
        number: Number of epochs of this stage.
        state: Train state after the last epoch.
    """

    best: Epoch
    best_here: Epoch
    last: Epoch
    number: int
    state: TrainState


@dataclass(frozen=True)
class StageBatches:
    """Feature batches of a stage; ``validation`` is None without a validation split."""

    training: FeatureBatches
    validation: FeatureBatches | None

    @property
    def counts(self) -> FeatureCounts | None:
        """Rows of features computed and reused; None if none are kept."""
        validation = None if self.validation is None else self.validation.counts
        return total([self.training.counts, validation])


@dataclass(frozen=True)
class RunOutput:
    """Where a run writes and reports, in all of its stages.

    Attributes:
        folder: Run directory.
        start: Start of the run on this process's clock, shifted back by the time that earlier
            processes took.
        epochs: Planned number of epochs of the whole run.
    """

    folder: Path
    start: float
    epochs: int
    reporter: Reporter
    trackers: Trackers | None = None
    """Experiment trackers; None in all processes but the first."""
    writes: bool = True
    """Whether this process writes to the folder; of several processes, the first one does."""


def run_epochs(
    stage_setup: StageSetup,
    batches: StageBatches,
    output: RunOutput,
    checkpointer: Checkpointer,
    *,
    past: EarlierStages,
    resume_point: ResumePoint | None = None,
    group: Group = ONE_PROCESS,
) -> Trained:
    """Train a stage; evaluate, record and save a checkpoint after each epoch.

    Args:
        past: Results of the earlier stages; epoch numbers and keys continue from theirs, and
            the best epoch of all stages is kept.
        resume_point: Checkpoint to resume from; None starts the stage from its beginning.
        group: Processes that train the stage together; ``batches`` have this process's share.

    Raises:
        Interrupted: a signal requested it; the progress so far is saved.
        ResultError: a loss, a gradient or a weight is not finite.
    """
    config, training = stage_setup.config, batches.training
    folder, reporter, total = output.folder, output.reporter, output.epochs
    state = TrainState(
        stage_setup,
        steps_per_epoch=-(-len(training) // config.train.accumulate),
        start=output.start,
        past=past,
        resume_point=resume_point,
        group=group,
    )
    verdict = Verdict(group, is_due=lambda: checkpointer.is_due)
    if past.optimizer_state is not None:
        kept = plural(state.state_kept, "tensor")
        does = (
            f"optimizer state of {kept} carried over from the previous stage"
            if state.state_kept
            else "fresh optimizer state"
        )
        reporter.detail(f"{config.optimizer.name}: {does}")
    progress, monitor = state.loop.progress, state.monitor
    epochs = _recorded(state, folder, writes=output.writes)
    if output.trackers is not None:
        output.trackers.begin(epoch.record() for epoch in epochs)
    first = len(past.records)
    best = past.best
    if resume_point is not None:
        with group.first_before_others():  # which may repair the file
            best = _best_on_disk(state, epochs, resume_point, output)

    def save() -> None:
        state.agree()
        checkpointer.keep_now(state.checkpoint(evaluated=False))

    def save_between_steps() -> None:
        asked = signals.asked()
        if asked or (verdict.save if group.are_several else checkpointer.is_due):
            save()
        if asked:
            raise _stopped(f"in {progress}", folder)

    def batches_of(epoch: int) -> Iterator[FeatureBatch]:
        left = training.epoch(epoch, progress.batch)
        number = len(training) - progress.batch
        try:
            yield from reporter.track(left, f"epoch {epoch}/{total}", total=number)
        except RuntimeError:
            if signals.asked():  # the same signal terminated the worker processes
                save_between_steps()
            raise

    to_train: Iterable[EpochResult] = ()
    if not monitor.stop:
        step = stage_setup.step
        if progress.stage:
            # Batches are counted from 0 in each stage, so the seed must differ between stages.
            step = replace(step, seed=seed_for(config.seed, "stage", progress.stage))
        to_train = train_epochs(
            state.loop,
            batches_of,
            epochs=first + config.train.epochs,
            step=step,
            loss=stage_setup.loss,
            callbacks=Callbacks(
                stage_setup.set_mode, after_step=save_between_steps, warn=reporter.warn
            ),
            sharing=Sharing(verdict, training.sizes) if group.are_several else None,
        )
    try:
        for trained in to_train:
            state.agree()
            epoch = _evaluated(state, trained, batches.validation, output, checkpointer, group)
            _refuse_not_a_number(epoch, config)
            epochs.append(epoch)
            state.add(epoch)
            if output.writes:
                append_line(folder / run_dir.METRICS, json.dumps(epoch.record()))
            if output.trackers is not None:
                output.trackers.epoch(epoch.record())
            best = epoch if best is None else best_of((best, epoch), monitor)
            checkpointer.keep(state.checkpoint(evaluated=True), is_best=best is epoch)
            is_best = best is epoch
            reporter.say(epoch.line(total, monitor=monitor.name, is_best=is_best), good=is_best)
            reporter.detail(epoch.details(monitor.waiting()))
            if signals.asked():
                raise _stopped(f"after epoch {trained.epoch}", folder)
            if monitor.stop:
                break
    except StepStopped:
        save()
        raise _stopped(f"in {progress}", folder) from None
    except NotFiniteError as error:
        raise _with_files(error, training, config) from error
    except RuntimeError as error:
        if signals.asked():  # the same signal terminated the worker processes during a step
            raise _stopped(f"in {progress}, partly saved", folder) from error
        raise
    assert best is not None  # train.epochs is at least 1
    here = epochs[first:]
    return Trained(
        best=best,
        best_here=best_of(here, monitor),
        last=epochs[-1],
        number=len(here),
        state=state,
    )


_UNRANKED = (-math.inf, -math.inf)


def best_of(epochs: Sequence[Epoch], monitor: EarlyStopping) -> Epoch:
    """Return the best epoch, the earliest among ties; the last epoch without validation."""
    last = epochs[-1]
    if last.val is None:
        return last
    return max(epochs, key=lambda epoch: monitor.rank(epoch.val) if epoch.val else _UNRANKED)


def _evaluated(
    state: TrainState,
    trained: EpochResult,
    validation: FeatureBatches | None,
    output: RunOutput,
    checkpointer: Checkpointer,
    group: Group,
) -> Epoch:
    loop = state.loop
    if validation is None:
        return Epoch(trained, None, 0.0, loop.progress.stage + 1)
    batches = signals.unless_asked(validation.epoch())
    total = group.ranks.batches(len(validation))
    tracked = output.reporter.track(batches, "evaluate", total=total)
    start = time.perf_counter()
    try:
        with state.averaged(), merged(state.stage_setup.model):
            model = averaging(loop.model, state.stage_setup.config.model)
            val = evaluate(
                model,
                tracked,
                num_classes=loop.num_classes,
                group=group,
                number=len(validation),
            )
    except (Interrupted, RuntimeError):
        if not signals.asked():
            raise
        # A RuntimeError here means that the same signal terminated the worker processes.
        checkpointer.keep_now(state.checkpoint(evaluated=False))
        where = f"in the evaluation of epoch {trained.epoch}"
        raise _stopped(where, output.folder) from None
    return Epoch(trained, val, time.perf_counter() - start, loop.progress.stage + 1)


def _recorded(state: TrainState, folder: Path, *, writes: bool) -> list[Epoch]:
    """Return the epochs already evaluated, and rewrite ``metrics.jsonl`` to contain only these."""
    try:
        epochs = [Epoch.of(record) for record in state.records]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"damaged: {error!r}", kind="checkpoint.damaged", path=folder / run_dir.LAST
        ) from error
    if not writes:
        return epochs
    if epochs:
        lines = "".join(f"{json.dumps(record)}\n" for record in state.records)
        write_text(folder / run_dir.METRICS, lines)
    else:
        (folder / run_dir.METRICS).unlink(missing_ok=True)
    return epochs


def _best_on_disk(
    state: TrainState, epochs: Sequence[Epoch], resume_point: ResumePoint, output: RunOutput
) -> Epoch | None:
    """Return the epoch whose weights are in ``best.pt``: the best so far, or its replacement.

    ``best.pt`` may be newer than ``last.pt`` if the latter was not finished or was damaged. Then
    the same epochs are repeated and give the same best epoch, unless the number of epochs was
    increased.
    """
    if not epochs:
        return None
    best = best_of(epochs, state.monitor)
    path = output.folder / run_dir.BEST
    if not output.writes:
        return best
    try:
        _, metadata = load_checkpoint(path)
    except CheckpointError as error:
        problem = str(error)
    else:
        lengths = {epochs_of(planned_stages(it)) for it in (metadata.config, resume_point.config)}
        grows = len(lengths) > 1
        if metadata.epoch == best.trained.epoch or (metadata.epoch > len(epochs) and not grows):
            return best
        at = metadata.epoch - 1
        if 0 <= at < len(epochs) and (state.records[at]["val"] or {}) == metadata.metrics:
            return epochs[at]
        problem = (
            f"{path}: contains epoch {metadata.epoch}, not the best epoch, {best.trained.epoch}"
        )
    if resume_point.training.record.position.batch:
        output.reporter.warn(f"{problem}; the best epoch is chosen among the following ones")
        return None
    last: Checkpoint = resume_point.checkpoint
    save_checkpoint(path, last.model, last.metadata)
    if epochs[-1] is not best:
        output.reporter.warn(f"{problem}; replaced by epoch {len(epochs)}")
    return epochs[-1]


def _stopped(where: str, folder: Path) -> Interrupted:
    return signals.interrupted(f" {where}; saved. Resume with: {resume_command(folder)}")


def _with_files(error: NotFiniteError, training: FeatureBatches, config: Config) -> NotFiniteError:
    files = shown_few(training.files(error.epoch, error.batch - 1)) if error.batch else "none"
    return error.at(
        to_do="Nothing of this step was saved. Images of this batch: "
        f"{files}. Try a lower optimizer.lr than {config.optimizer.lr:g}, that of "
        f"optimizer.name {config.optimizer.name}, or train.clip_norm"
    )


def _refuse_not_a_number(epoch: Epoch, config: Config) -> None:
    if epoch.val is not None and not math.isfinite(epoch.val.loss):
        raise ResultError(
            "the validation loss is not a finite number",
            kind="result.not_finite",
            source=f"epoch {epoch.trained.epoch}",
            to_do="Nothing of this epoch was saved. Try a lower optimizer.lr than "
            f"{config.optimizer.lr:g}, that of optimizer.name {config.optimizer.name}",
        )
