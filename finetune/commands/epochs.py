"""The epochs of a stage: train, evaluate, record, keep, show; and to stop and go on in between."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune import run_folder, stopping
from finetune.adapters import merged
from finetune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from finetune.commands.epoch_record import Epoch
from finetune.commands.preparation import Prepared
from finetune.commands.resuming import Resumed, command
from finetune.commands.underway import Past, Underway
from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.data.images import shown_few
from finetune.errors import CheckpointError, Interrupted, NotFiniteError, ResultError
from finetune.evaluate import evaluate
from finetune.features import FeatureBatch, Source
from finetune.files import append_line, write_text
from finetune.keyed import seed_for
from finetune.loop import EpochResult, train_epochs
from finetune.monitor import Monitor
from finetune.progress import Progress
from finetune.report.tables import plural
from finetune.saving import Saver
from finetune.stages import epochs_of, stage_configs


@dataclass(frozen=True)
class Trained:
    """What became of a stage's epochs.

    Attributes:
        best: Of all epochs so far, those of earlier stages among them.
        best_here: Of this stage.
        number: Of its epochs.
        under_way: The stage as it stands.
    """

    best: Epoch
    best_here: Epoch
    last: Epoch
    number: int
    under_way: Underway


def run_epochs(
    prepared: Prepared,
    training: Source,
    validation: Source | None,
    folder: Path,
    saver: Saver,
    progress: Progress,
    *,
    start: float,
    total: int,
    past: Past,
    resumed: Resumed | None = None,
) -> Trained:
    """Train, and after each epoch evaluate, record and keep.

    Args:
        total: Epochs of the whole run, as planned.
        past: What earlier stages left behind; numbers and keys of epochs go on from theirs, and
            the best of all is kept.
        start: Of the run, by this process's clock, earlier processes counted in.

    Raises:
        Interrupted: a signal asked for it; what was done is saved.
        ResultError: a loss, a gradient or a weight is no number.
    """
    config, live = prepared.config, prepared.engine.live
    num_classes = prepared.plan.num_classes
    steps = -(-len(training) // config.train.accumulate)
    run = Underway(prepared, steps_per_epoch=steps, start=start, past=past, resumed=resumed)
    if past.memory is not None:
        kept = plural(run.state_kept, "tensor")
        state = f"keeps its state of {kept}" if run.state_kept else "begins without a state"
        progress.say(f"{config.optimizer.name} {state} from the stage before")
    position, monitor = run.position, run.monitor
    epochs = _recorded(run, folder)
    first = len(past.records)
    best = past.best
    if resumed is not None:
        best = _best_on_disk(run, epochs, resumed, folder, progress)

    def save_between_steps() -> None:
        if stopping.asked():
            saver.keep_now(run.checkpoint(evaluated=False))
            raise _stopped(f"in {position}", folder)
        if saver.is_due:
            saver.keep_now(run.checkpoint(evaluated=False))

    def batches(epoch: int) -> Iterator[FeatureBatch]:
        left = training.epoch(epoch, position.batch)
        number = len(training) - position.batch
        try:
            yield from progress.track(left, f"epoch {epoch}/{total}", total=number)
        except RuntimeError:
            if stopping.asked():  # worker processes died of the signal that we were sent
                save_between_steps()
            raise

    to_train: Iterable[EpochResult] = ()
    if not monitor.stop:
        to_train = train_epochs(
            live,
            batches=batches,
            optimizer=run.optimizer,
            schedule=run.schedule,
            set_mode=prepared.set_mode,
            epochs=first + config.train.epochs,
            num_classes=num_classes,
            # Batches count from 0 in each stage: their keys are those of no other stage.
            seed=seed_for(config.seed, "stage", position.stage) if position.stage else config.seed,
            label_smoothing=config.train.label_smoothing,
            class_weights=class_weights(prepared.data.train.counts())
            if config.data.balance == "weights"
            else None,
            aux_weight=prepared.plan.spec.family.aux_weight,
            accumulate=config.train.accumulate,
            clip_norm=config.train.clip_norm,
            average=run.average,
            position=position,
            meter=run.meter,
            between_steps=save_between_steps,
            say=progress.warn,
        )
    try:
        for trained in to_train:
            epoch = _evaluated(run, trained, validation, progress, saver, folder)
            _refuse_not_a_number(epoch, config)
            epochs.append(epoch)
            run.add(epoch)
            append_line(folder / run_folder.METRICS, json.dumps(epoch.record()))
            best = epoch if best is None else best_of((best, epoch), monitor)
            saver.keep(run.checkpoint(evaluated=True), is_best=best is epoch)
            shown = epoch.line(
                total,
                monitor=monitor.name,
                is_best=best is epoch,
                uncounted=monitor.uncounted(),
            )
            progress.say(shown)
            if stopping.asked():
                raise _stopped(f"after epoch {trained.epoch}", folder)
            if monitor.stop:
                break
    except NotFiniteError as error:
        raise _with_files(error, training, config) from error
    except RuntimeError as error:
        if stopping.asked():  # as above, but in the middle of a step
            raise _stopped(f"in {position}, not all of it saved", folder) from error
        raise
    assert best is not None  # train.epochs is at least 1
    here = epochs[first:]
    return Trained(best, best_of(here, monitor), epochs[-1], len(here), run)


_UNRANKED = (-math.inf, -math.inf)


def best_of(epochs: Sequence[Epoch], monitor: Monitor) -> Epoch:
    """Find the best epoch, of equals the earliest; without validation the last one."""
    last = epochs[-1]
    if last.val is None:
        return last
    return max(epochs, key=lambda epoch: monitor.rank(epoch.val) if epoch.val else _UNRANKED)


def _evaluated(
    run: Underway,
    trained: EpochResult,
    validation: Source | None,
    progress: Progress,
    saver: Saver,
    folder: Path,
) -> Epoch:
    if validation is None:
        return Epoch(trained, None, 0.0, run.position.stage + 1)
    batches = stopping.unless_asked(validation.epoch())
    tracked = progress.track(batches, "evaluate", total=len(validation))
    start = time.perf_counter()
    live, num_classes = run.prepared.engine.live, run.prepared.plan.num_classes
    try:
        with run.averaged(), merged(run.prepared.model):
            val = evaluate(live, tracked, num_classes=num_classes)
    except (Interrupted, RuntimeError):
        if not stopping.asked():
            raise
        # A RuntimeError: worker processes died of the signal that we were sent.
        saver.keep_now(run.checkpoint(evaluated=False))
        raise _stopped(f"in the evaluation of epoch {trained.epoch}", folder) from None
    return Epoch(trained, val, time.perf_counter() - start, run.position.stage + 1)


def _recorded(run: Underway, folder: Path) -> list[Epoch]:
    """The epochs that were evaluated before, and no others, in the file that lists them."""
    try:
        epochs = [Epoch.of(record) for record in run.records]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / run_folder.LAST}: damaged: {error!r}") from error
    if epochs:
        lines = "".join(f"{json.dumps(record)}\n" for record in run.records)
        write_text(folder / run_folder.METRICS, lines)
    else:
        (folder / run_folder.METRICS).unlink(missing_ok=True)
    return epochs


def _best_on_disk(
    run: Underway, epochs: Sequence[Epoch], resumed: Resumed, folder: Path, progress: Progress
) -> Epoch | None:
    """The best epoch so far, whose weights are in the file; where a better one was lost, the one
    that took its place.

    That file may be ahead: written before a last one that was never finished, or was damaged. Then
    the same epochs come again, and their best with them; unless the run grows, and they do not.
    """
    if not epochs:
        return None
    best = best_of(epochs, run.monitor)
    path = folder / run_folder.BEST
    try:
        _, metadata = load_checkpoint(path)
    except CheckpointError as error:
        problem = str(error)
    else:
        lengths = {epochs_of(stage_configs(it)) for it in (metadata.config, resumed.config)}
        grows = len(lengths) > 1
        if metadata.epoch == best.trained.epoch or (metadata.epoch > len(epochs) and not grows):
            return best
        at = metadata.epoch - 1
        if 0 <= at < len(epochs) and (run.records[at]["val"] or {}) == metadata.metrics:
            return epochs[at]
        problem = f"{path}: is of epoch {metadata.epoch}, not of {best.trained.epoch}"
    if resumed.training.record.position.batch:
        progress.warn(f"{problem}; the best epoch is chosen among those to come")
        return None
    last: Checkpoint = resumed.checkpoint
    save_checkpoint(path, last.model, last.metadata)
    if epochs[-1] is not best:
        progress.warn(f"{problem}; epoch {len(epochs)} takes its place")
    return epochs[-1]


def _stopped(where: str, folder: Path) -> Interrupted:
    return stopping.interrupted(f" {where}; saved. Go on with: {command(folder)}")


def _with_files(error: NotFiniteError, training: Source, config: Config) -> ResultError:
    files = shown_few(training.files(error.epoch, error.batch - 1)) if error.batch else "none"
    return ResultError(
        f"{error}; nothing of it was saved. Images of this batch: {files}. Try a lower "
        f"optimizer.lr than {config.optimizer.lr:g}, or train.clip_norm"
    )


def _refuse_not_a_number(epoch: Epoch, config: Config) -> None:
    if epoch.val is not None and not math.isfinite(epoch.val.loss):
        raise ResultError(
            f"epoch {epoch.trained.epoch}: the validation loss is not a finite number; nothing of "
            f"this epoch was saved. Try a lower optimizer.lr than {config.optimizer.lr:g}."
        )
