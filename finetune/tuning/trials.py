"""Trials of a search: stacked heads in parallel, anything larger one after another."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import nn

from finetune.config.resolved import ResolvedConfig
from finetune.core.errors import NotFiniteError
from finetune.core.memory import steps_of
from finetune.core.reporter import Reporter
from finetune.results.tuning import FoldScore, Settings, Trial, in_order
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.lr_schedulers import build_schedule
from finetune.training.step import StepConfig
from finetune.tuning.cross_validation import CrossValidation, FoldData
from finetune.tuning.parallel_trials import try_heads
from finetune.tuning.search_space import with_settings
from finetune.tuning.stacked_heads import lone_head


def ranked_trials(
    cv: CrossValidation,
    settings: Sequence[Settings],
    *,
    metric: str,
    reporter: Reporter,
    first: int = 0,
) -> list[Trial]:
    """Train with each of the settings, and return the trials in the order of `in_order`.

    Args:
        first: Number of the first trial.
    """
    scores, model = run_trials(cv, settings, reporter), cv.config.model
    trials = [
        Trial.of(number, model.name, model.weights, one, each, metric=metric)
        for number, (one, each) in enumerate(zip(settings, scores, strict=True), first)
    ]
    return in_order(trials, metric)


def run_trials(
    cv: CrossValidation, settings: Sequence[Settings], reporter: Reporter
) -> list[list[FoldScore]]:
    """Train with each of the settings and return its scores on each fold."""
    cv.set_mode()
    path = lone_head(cv.engine.split.trainable_part)
    if path is None or cv.config.augment.mixes:
        return _one_by_one(cv, settings, reporter)
    return try_heads(cv, path, settings, reporter)


def _one_by_one(
    cv: CrossValidation, settings: Sequence[Settings], reporter: Reporter
) -> list[list[FoldScore]]:
    """Train with `train_epochs` for each of the settings, from the same initial weights."""
    trainable_part = cv.engine.trainable_part
    first = OrderedDict(
        (name, t.detach().clone()) for name, t in trainable_part.state_dict().items()
    )
    folds = cv.fold_data()

    def trials() -> Iterator[list[FoldScore]]:
        for one in settings:
            scores = []
            for fold in folds:
                trainable_part.load_state_dict(first)
                scores.append(_trial(fold, trainable_part, with_settings(cv.config, one)))
            yield scores

    try:
        with steps_of(cv.trainable_work * cv.config.data.batch_size):
            return list(reporter.track(trials(), "search, trials", total=len(settings)))
    finally:
        trainable_part.load_state_dict(first)


def _trial(fold: FoldData, trainable_part: nn.Module, config: ResolvedConfig) -> FoldScore:
    cv = fold.cv
    batches = fold.batches(config.data.batch_size)
    optimizer = cv.optimizer_of(config.optimizer)
    epochs = config.train.epochs
    schedule = build_schedule(
        optimizer, config.schedule, epochs=epochs, steps_per_epoch=len(batches)
    )
    trained = train_epochs(
        LoopState(trainable_part, optimizer, schedule, cv.num_classes),
        batches.epoch,
        epochs=epochs,
        step=StepConfig(seed=config.seed),
        loss=LossConfig(
            label_smoothing=config.train.label_smoothing,
            class_weights=fold.class_weights(),
            aux_weight=cv.aux_weight,
        ),
        callbacks=Callbacks(cv.set_mode),
    )
    try:
        for _ in trained:
            pass
    except NotFiniteError:
        return FoldScore(
            num_images=0,
            top1=math.nan,
            balanced_accuracy=math.nan,
            macro_f1=math.nan,
            loss=math.nan,
        )
    val = evaluate(trainable_part, fold.held_out.epoch(), num_classes=cv.num_classes)
    return FoldScore(val.num_images, val.top1, val.balanced_accuracy, val.macro_f1, val.loss)
