"""Trials of heads: those that share their batches side by side, the folds beside each other."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from finetune.config import Config
from finetune.head_updates import HeadSettings
from finetune.heads import score_heads, train_heads
from finetune.in_form import InForm
from finetune.judging import Ground, Round
from finetune.progress import Progress
from finetune.runtime import WORTH_SHARING, one_thread_a_core
from finetune.search_space import with_settings
from finetune.shared_dropout import share_dropout
from finetune.tune_results import FoldScore, Settings

_MOST_NUMBERS = 2**20
"""Weights side by side: with their gradients and the optimizer's state they stay in a core's
caches."""


@dataclass(frozen=True)
class _Piece:
    """Trials of one batch size, by their places among all."""

    batch_size: int
    members: tuple[int, ...]


def try_heads(
    ground: Ground, path: str, settings: Sequence[Settings], progress: Progress
) -> list[list[FoldScore]]:
    """The figures of each of these settings, fold by fold.

    Args:
        path: Of the head, from `lone_head`.
    """
    engine = ground.engine
    on_cpu = engine.device.type == "cpu"
    # Compiling would take longer than the whole search.
    form = replace(engine.live_choice.form, compiled=False)
    live = engine.split.live
    numbers = sum(p.numel() for p in live.parameters() if p.requires_grad)
    pieces = _pieces(settings, at_once=max(_MOST_NUMBERS // numbers, 1))
    scores: dict[tuple[int, int], FoldScore] = {}

    def steps_of(number: int, fold: Round, piece: _Piece, network: InForm) -> Iterator[None]:
        for ended, heads in train_heads(
            network,
            f"module.{path}",
            [_head_settings(ground.config, settings[at]) for at in piece.members],
            batches=fold.batches(piece.batch_size),
            schedule=ground.config.schedule,
            seed=ground.config.seed,
            class_weights=fold.class_weights(),
        ):
            if ended:
                found = score_heads(heads, fold.held_out.epoch())
                for at, score in zip(ended, found, strict=True):
                    scores[piece.members[at], number] = score
            yield

    works, independent = [], on_cpu
    for piece in pieces:
        network = InForm(copy.deepcopy(live), form, engine.device)
        independent = (on_cpu and share_dropout(network)) and independent
        folds = [
            steps_of(number, fold, piece, network) for number, fold in enumerate(ground.rounds())
        ]
        works.append(itertools.zip_longest(*folds))
    # Small steps are Python's more than torch's, and Python computes in one thread.
    largest = max(len(piece.members) * piece.batch_size for piece in pieces)
    apart = independent and ground.kept and largest * ground.live_work >= WORTH_SHARING
    steps = _beside_each_other(works, len(works) if apart else 1)
    total = sum(
        max(settings[at].epochs for at in piece.members) * _steps_per_epoch(ground, piece)
        for piece in pieces
    )
    for _ in progress.track(steps, "search, steps", total=total):
        pass
    rounds = range(len(ground.rounds()))
    return [[scores[at, number] for number in rounds] for at in range(len(settings))]


def _pieces(settings: Sequence[Settings], *, at_once: int) -> list[_Piece]:
    """The longest first, so that no core waits long for another at the end."""
    by_size: dict[int, list[int]] = {}
    for at, one in enumerate(settings):
        by_size.setdefault(one.batch_size, []).append(at)
    pieces = []
    for batch_size, members in sorted(by_size.items()):
        # Heads that end together side by side.
        members.sort(key=lambda at: -settings[at].epochs)
        number = math.ceil(len(members) / at_once)
        size = math.ceil(len(members) / number)
        for start in range(0, len(members), size):
            pieces.append(_Piece(batch_size, tuple(members[start : start + size])))
    return pieces


def _steps_per_epoch(ground: Ground, piece: _Piece) -> int:
    """Of the longest fold."""
    return max(len(fold.batches(piece.batch_size)) for fold in ground.rounds())


def _head_settings(config: Config, settings: Settings) -> HeadSettings:
    optimizer = with_settings(config, settings).optimizer
    return HeadSettings(optimizer, settings.epochs, settings.label_smoothing)


def _beside_each_other(works: Sequence[Iterator[object]], threads: int) -> Iterator[None]:
    """What these iterators yield, one after another or a core for each."""
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
        finally:  # an interruption, or an error in one of them: the others need not go on
            stopped.set()
