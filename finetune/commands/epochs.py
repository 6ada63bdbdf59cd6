"""The epochs of a run: train, evaluate, record, keep, show."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune import run_folder
from finetune.adapters import merged, named_trainable
from finetune.checkpoint import Frozen, Metadata
from finetune.commands.preparation import Prepared, updates_norm_stats
from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.errors import ResultError
from finetune.evaluate import Evaluation, evaluate
from finetune.features import Source
from finetune.files import append_line
from finetune.loop import EpochResult, train_epochs
from finetune.monitor import Monitor
from finetune.optim import build_optimizer, build_schedule
from finetune.progress import Progress
from finetune.runtime import versions
from finetune.saving import Saver
from finetune.schedules import end_epoch
from finetune.train_mode import set_train_mode

_VAL_FIGURES = ("num_images", "top1", "balanced_accuracy", "macro_f1", "top5", "loss")


@dataclass(frozen=True)
class Epoch:
    """One epoch's training and the evaluation after it."""

    trained: EpochResult
    val: Evaluation
    eval_s: float

    def record(self) -> dict[str, object]:
        """The epoch's line of ``metrics.jsonl``."""
        val = {key: getattr(self.val, key) for key in _VAL_FIGURES}
        return asdict(self.trained) | {"val": val, "eval_s": self.eval_s}

    def line(self, total: int, *, monitor: str, is_best: bool) -> str:
        """The epoch in one line, for people."""
        macro_f1 = f"  macro F1 {self.val.macro_f1:.2%}" if monitor == "macro_f1" else ""
        return (
            f"epoch {self.trained.epoch:>{len(str(total))}}/{total}"
            f"  lr {self.trained.lr:.2g}  loss {self.trained.loss:.4f}"
            f"  val loss {self.val.loss:.4f}  val top-1 {self.val.top1:.2%}"
            f"  balanced {self.val.balanced_accuracy:.2%}{macro_f1}"
            f"{'  best' if is_best else ''}"
        )


def run_epochs(
    prepared: Prepared,
    training: Source,
    validation: Source,
    folder: Path,
    saver: Saver,
    progress: Progress,
) -> tuple[Epoch, Epoch]:
    """Train, and after each epoch evaluate, record and keep; returns the best and the last."""
    config, model, live = prepared.config, prepared.model, prepared.engine.live
    num_classes = prepared.plan.num_classes
    optimizer = build_optimizer(
        named_trainable(model), config.optimizer, depths=prepared.plan.depths
    )
    schedule = build_schedule(
        optimizer, config.schedule, epochs=config.train.epochs, steps_per_epoch=len(training)
    )
    total = config.train.epochs
    monitor = Monitor(config.train)
    best: Epoch | None = None
    for trained in train_epochs(
        live,
        batches=lambda epoch: progress.track(
            training.epoch(epoch), f"epoch {epoch}/{total}", total=len(training)
        ),
        optimizer=optimizer,
        schedule=schedule,
        set_mode=lambda: set_train_mode(model, update_norm_stats=updates_norm_stats(config)),
        epochs=total,
        num_classes=num_classes,
        seed=config.seed,
        label_smoothing=config.train.label_smoothing,
        class_weights=class_weights(prepared.data.train.counts())
        if config.data.balance == "weights"
        else None,
        aux_weight=prepared.plan.spec.family.aux_weight,
    ):
        tracked = progress.track(validation.epoch(), "evaluate", total=len(validation))
        start = time.perf_counter()
        with merged(model):
            val = evaluate(live, tracked, num_classes=num_classes)
        epoch = Epoch(trained, val, time.perf_counter() - start)
        _refuse_not_a_number(epoch, config)
        append_line(folder / run_folder.METRICS, json.dumps(epoch.record()))
        if monitor.see(val):
            best = epoch
        end_epoch(schedule, monitor.figure(val))
        saver.keep(_metadata(prepared, epoch), is_best=best is epoch)
        progress.say(epoch.line(total, monitor=monitor.name, is_best=best is epoch))
        if monitor.stop:
            break
    assert best is not None  # train.epochs is at least 1
    return best, epoch


def _refuse_not_a_number(epoch: Epoch, config: Config) -> None:
    for what, loss in (("training", epoch.trained.loss), ("validation", epoch.val.loss)):
        if not math.isfinite(loss):
            raise ResultError(
                f"epoch {epoch.trained.epoch}: the {what} loss is not a finite number; nothing "
                f"of this epoch was saved. Try a lower optimizer.lr than {config.optimizer.lr:g}."
            )


def _metadata(prepared: Prepared, epoch: Epoch) -> Metadata:
    spec, freeze = prepared.plan.spec, prepared.plan.freeze
    return Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=prepared.data.train.class_names,
        preprocessing=spec.preprocessing,
        config=prepared.config,
        freeze_plan=Frozen(
            patterns=prepared.config.freeze.patterns,
            names=tuple(d.name for d in freeze.decisions if d.name in prepared.plan.held),
        ),
        epoch=epoch.trained.epoch,
        metrics={
            "top1": epoch.val.top1,
            "balanced_accuracy": epoch.val.balanced_accuracy,
            "macro_f1": epoch.val.macro_f1,
            "top5": epoch.val.top5,
            "loss": epoch.val.loss,
            "num_images": epoch.val.num_images,
        },
        versions=versions(),
    )
