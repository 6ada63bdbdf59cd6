"""Trials of a search: heads all at once, anything larger one after another."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import nn

from finetune.config import Config
from finetune.errors import NotFiniteError
from finetune.evaluate import evaluate
from finetune.head_trials import try_heads
from finetune.heads import lone_head
from finetune.judging import Ground, Round
from finetune.loop import train_epochs
from finetune.progress import Progress
from finetune.runtime import steps_of
from finetune.schedules import build_schedule
from finetune.search_space import with_settings
from finetune.tune_results import FoldScore, Settings


def run_trials(
    ground: Ground, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """The figures of each of these settings, fold by fold."""
    ground.set_mode()
    path = lone_head(ground.engine.split.live)
    if path is None or ground.config.augment.mixes:
        return _one_by_one(ground, settings, progress)
    return try_heads(ground, path, settings, progress)


def _one_by_one(
    ground: Ground, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """The ordinary loop for each, from the same weights."""
    live = ground.engine.live
    first = OrderedDict((name, t.detach().clone()) for name, t in live.state_dict().items())
    rounds = ground.rounds()

    def trials() -> Iterator[list[FoldScore]]:
        for one in settings:
            scores = []
            for fold in rounds:
                live.load_state_dict(first)
                scores.append(_trial(fold, live, with_settings(ground.config, one)))
            yield scores

    try:
        with steps_of(ground.live_work * ground.config.data.batch_size):
            return list(progress.track(trials(), "search, trials", total=len(settings)))
    finally:
        live.load_state_dict(first)


def _trial(fold: Round, live: nn.Module, config: Config) -> FoldScore:
    ground = fold.ground
    batches = fold.batches(config.data.batch_size)
    optimizer = ground.optimizer_of(config.optimizer)
    epochs = config.train.epochs
    schedule = build_schedule(
        optimizer, config.schedule, epochs=epochs, steps_per_epoch=len(batches)
    )
    trained = train_epochs(
        live,
        batches=batches.epoch,
        optimizer=optimizer,
        schedule=schedule,
        set_mode=ground.set_mode,
        epochs=epochs,
        num_classes=ground.num_classes,
        seed=config.seed,
        label_smoothing=config.train.label_smoothing,
        class_weights=fold.class_weights(),
        aux_weight=ground.aux_weight,
    )
    try:
        for _ in trained:
            pass
    except NotFiniteError:
        return FoldScore(0, *[math.nan] * 4)
    val = evaluate(live, fold.held_out.epoch(), num_classes=ground.num_classes)
    return FoldScore(val.num_images, val.top1, val.balanced_accuracy, val.macro_f1, val.loss)
