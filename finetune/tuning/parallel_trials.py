"""Parallel trials of heads: those with the same batch size are stacked and share their batches."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from finetune.config.resolved import ResolvedConfig
from finetune.core.reporter import Reporter
from finetune.core.threads import WORTH_SHARING, one_thread_a_core
from finetune.features.autocast_module import AutocastModule
from finetune.results.tuning import FoldScore, Settings
from finetune.tuning.cross_validation import CrossValidation, FoldData
from finetune.tuning.search_space import with_settings
from finetune.tuning.shared_dropout import share_dropout
from finetune.tuning.stacked_heads import score_heads, train_heads
from finetune.tuning.stacked_optimizers import HeadSettings

_MOST_NUMBERS = 2**20
"""Maximum number of stacked weights: with gradients and optimizer state they fit in a core's
caches."""


@dataclass(frozen=True)
class _Piece:
    """Stacked trials of one batch size, by their indices."""

    batch_size: int
    members: tuple[int, ...]


def try_heads(
    cv: CrossValidation, path: str, settings: Sequence[Settings], reporter: Reporter
) -> list[list[FoldScore]]:
    """Train a head for each of the settings and return its scores on each fold.

    Args:
        path: Path of the head, from `lone_head`.
    """
    engine = cv.engine
    on_cpu = engine.device.type == "cpu"
    # Compilation would take longer than the whole search.
    compute_format = replace(engine.trainable_choice.form, compiled=False)
    trainable_part = engine.split.trainable_part
    numbers = sum(p.numel() for p in trainable_part.parameters() if p.requires_grad)
    pieces = _pieces(settings, at_once=max(_MOST_NUMBERS // numbers, 1))
    scores: dict[tuple[int, int], FoldScore] = {}

    def steps_of(
        number: int, fold: FoldData, piece: _Piece, network: AutocastModule
    ) -> Iterator[None]:
        for ended, heads in train_heads(
            network,
            f"module.{path}",
            [_head_settings(cv.config, settings[at]) for at in piece.members],
            batches=fold.batches(piece.batch_size),
            schedule=cv.config.schedule,
            seed=cv.config.seed,
            class_weights=fold.class_weights(),
        ):
            if ended:
                found = score_heads(heads, fold.held_out.epoch())
                for at, score in zip(ended, found, strict=True):
                    scores[piece.members[at], number] = score
            yield

    works, independent = [], on_cpu
    for piece in pieces:
        network = AutocastModule(copy.deepcopy(trainable_part), compute_format, engine.device)
        independent = (on_cpu and share_dropout(network)) and independent
        folds = [
            steps_of(number, fold, piece, network) for number, fold in enumerate(cv.fold_data())
        ]
        works.append(itertools.zip_longest(*folds))
    # Threads do not speed up small steps, in which most of the time is spent in Python.
    largest = max(len(piece.members) * piece.batch_size for piece in pieces)
    apart = independent and cv.kept and largest * cv.trainable_work >= WORTH_SHARING
    steps = run_in_parallel(works, len(works) if apart else 1)
    total = sum(
        max(settings[at].epochs for at in piece.members) * _steps_per_epoch(cv, piece)
        for piece in pieces
    )
    for _ in reporter.track(steps, "search, steps", total=total):
        pass
    all_folds = range(len(cv.fold_data()))
    return [[scores[at, number] for number in all_folds] for at in range(len(settings))]


def _pieces(settings: Sequence[Settings], *, at_once: int) -> list[_Piece]:
    """Group trials by batch size, those with most steps first, to balance the load of the cores."""
    by_size: dict[int, list[int]] = {}
    for at, one in enumerate(settings):
        by_size.setdefault(one.batch_size, []).append(at)
    pieces = []
    for batch_size, members in sorted(by_size.items()):
        # Stack heads that end together.
        members.sort(key=lambda at: -settings[at].epochs)
        number = math.ceil(len(members) / at_once)
        size = math.ceil(len(members) / number)
        for start in range(0, len(members), size):
            pieces.append(_Piece(batch_size, tuple(members[start : start + size])))
    return pieces


def _steps_per_epoch(cv: CrossValidation, piece: _Piece) -> int:
    """Return the number of steps per epoch of the longest fold."""
    return max(len(fold.batches(piece.batch_size)) for fold in cv.fold_data())


def _head_settings(config: ResolvedConfig, settings: Settings) -> HeadSettings:
    optimizer = with_settings(config, settings).optimizer
    return HeadSettings(optimizer, settings.epochs, settings.label_smoothing)


def run_in_parallel(works: Sequence[Iterator[object]], threads: int) -> Iterator[None]:
    """Run the iterators on ``threads`` threads, and yield once per item of any of them."""
    told: SimpleQueue[bool | BaseException] = SimpleQueue()
    stopped = threading.Event()

    def run(work: Iterator[object]) -> None:
        try:
            for _ in work:
                told.put(True)
                if stopped.is_set():
                    return
            told.put(False)
        except BaseException as error:
            told.put(error)

    with one_thread_a_core(threads) as pool:
        try:
            for work in works:
                pool.submit(run, work)
            running = len(works)
            while running:
                news = told.get()
                if isinstance(news, BaseException):
                    raise news
                if news:
                    yield
                else:
                    running -= 1
        finally:  # after an interruption or an error in one iterator, stop the others
            stopped.set()
