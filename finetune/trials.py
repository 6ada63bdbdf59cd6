"""Trials of a search, judged on folds: heads all at once, anything larger one after another."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.data.folds import Fold
from finetune.data.images import Images
from finetune.data.loading import batch_sizes
from finetune.engine import Engine
from finetune.evaluate import evaluate
from finetune.features import Source
from finetune.head_updates import HeadSettings
from finetune.heads import lone_head, score_heads, train_heads
from finetune.in_form import InForm
from finetune.loop import train_epochs
from finetune.optim import build_optimizer, build_schedule
from finetune.progress import Progress
from finetune.runtime import threads_for
from finetune.search_space import with_settings
from finetune.shared_dropout import share_dropout
from finetune.tune_results import FoldScore, Settings

HELD_OUT_BATCH = 256
"""Images at once where nothing is trained: their size decides nothing but speed."""


class Part(Protocol):
    """Gives the batches of some training images."""

    def __call__(self, positions: Sequence[int], *, batch_size: int, training: bool) -> Source:
        """As training sees them, or as they are judged by."""


@dataclass(frozen=True)
class Ground:
    """What every trial is trained and judged on.

    Attributes:
        config: Resolved.
        train: The training images.
        folds: Of these; none where the validation split judges.
        part: Batches of some training images.
        validation: The validation images' batches, where they judge.
        set_mode: Puts the live part's modules into their modes for training.
    """

    engine: Engine
    config: Config
    train: Images
    folds: tuple[Fold, ...]
    part: Part
    validation: Source | None
    set_mode: Callable[[], None]
    aux_weight: float

    @property
    def num_classes(self) -> int:
        """Of the data."""
        return len(self.train.class_names)

    def rounds(self) -> Iterator[Round]:
        """Each fold, or all training images and the validation split."""
        for fold in self.folds:
            held_out = self.part(fold.held_out, batch_size=HELD_OUT_BATCH, training=False)
            yield Round(self, fold.train, held_out)
        if not self.folds:
            assert self.validation is not None
            yield Round(self, tuple(range(len(self.train))), self.validation)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Of the longest round."""
        longest = max((len(fold.train) for fold in self.folds), default=len(self.train))
        return len(batch_sizes(longest, batch_size, join_last_of_one=True))


@dataclass(frozen=True)
class Round:
    """One fold: what is trained on, and what judges."""

    ground: Ground
    positions: tuple[int, ...]
    held_out: Source

    def batches(self, batch_size: int) -> Source:
        """To train on."""
        return self.ground.part(self.positions, batch_size=batch_size, training=True)

    def class_weights(self) -> list[float] | None:
        """Of these very images."""
        if self.ground.config.data.balance != "weights":
            return None
        return class_weights(self.ground.train.subset(self.positions).counts())


def run_trials(
    ground: Ground, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """The figures of each of these settings, fold by fold."""
    path = lone_head(ground.engine.split.live)
    if path is None or ground.config.augment.mixes:
        return _one_by_one(ground, settings, progress)
    return _together(ground, path, settings, progress)


def _together(
    ground: Ground, path: str, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """Heads that share their batches, all at once; the folds step by step beside each other."""
    ground.set_mode()
    live, device = copy.deepcopy(ground.engine.split.live), ground.engine.device
    # Compiling would take longer than the whole search.
    form = replace(ground.engine.live_choice.form, compiled=False)
    network = InForm(live, form, device)
    if device.type == "cpu":
        share_dropout(network)
    by_size: dict[int, list[int]] = {}
    for at, one in enumerate(settings):
        by_size.setdefault(one.batch_size, []).append(at)
    scores: list[list[FoldScore]] = [[] for _ in settings]

    def steps_of(fold: Round, batch_size: int, members: Sequence[int]) -> Iterator[None]:
        for ended, heads in train_heads(
            network,
            f"module.{path}",
            [_head_settings(ground.config, settings[at]) for at in members],
            batches=fold.batches(batch_size),
            schedule=ground.config.schedule,
            seed=ground.config.seed,
            class_weights=fold.class_weights(),
        ):
            if ended:
                found = score_heads(heads, fold.held_out.epoch())
                for at, score in zip(ended, found, strict=True):
                    scores[members[at]].append(score)
            yield

    def steps() -> Iterator[object]:
        weights = sum(p.numel() for p in live.parameters() if p.requires_grad)
        for batch_size, members in by_size.items():
            folds = [steps_of(fold, batch_size, members) for fold in ground.rounds()]
            with threads_for(weights * len(members) * batch_size):
                yield from itertools.zip_longest(*folds)

    total = sum(
        max(settings[at].epochs for at in members) * ground.steps_per_epoch(batch_size)
        for batch_size, members in by_size.items()
    )
    for _ in progress.track(steps(), "search, steps", total=total):
        pass
    return scores


def _head_settings(config: Config, settings: Settings) -> HeadSettings:
    optimizer = with_settings(config, settings).optimizer
    return HeadSettings(optimizer, settings.epochs, settings.label_smoothing)


def _one_by_one(
    ground: Ground, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """The ordinary loop for each, from the same weights."""
    live = ground.engine.live
    first = OrderedDict((name, t.detach().clone()) for name, t in live.state_dict().items())
    rounds = list(ground.rounds())

    def trials() -> Iterator[list[FoldScore]]:
        for one in settings:
            scores = []
            for fold in rounds:
                live.load_state_dict(first)
                scores.append(_trial(fold, live, with_settings(ground.config, one)))
            yield scores

    try:
        return list(progress.track(trials(), "search, trials", total=len(settings)))
    finally:
        live.load_state_dict(first)


def _trial(fold: Round, live: nn.Module, config: Config) -> FoldScore:
    ground = fold.ground
    batches = fold.batches(config.data.batch_size)
    optimizer = build_optimizer(live.parameters(), config.optimizer)
    epochs = config.train.epochs
    schedule = build_schedule(
        optimizer, config.schedule, epochs=epochs, steps_per_epoch=len(batches)
    )
    for _ in train_epochs(
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
    ):
        pass
    val = evaluate(live, fold.held_out.epoch(), num_classes=ground.num_classes)
    return FoldScore(val.num_images, val.top1, val.balanced_accuracy, val.loss)
