"""Verdict: what the processes of a run agree on at each step, such as whether to stop or to save.

A process that stopped, saved or repeated a step on its own would leave the others waiting for it.
So each reports what happened to it, and all act on the sum.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from finetune.core import signals
from finetune.core.errors import UnreadableError
from finetune.distributed.group import Group

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Unread:
    """Batch of which this process cannot decode its images."""

    error: UnreadableError


@dataclass
class Verdict:
    """Reports of all processes about a step.

    Attributes:
        is_due: Whether a checkpoint should be saved; the first process decides.
        save: Whether one is due after the step that ended last.
        fits: Whether memory sufficed in all processes.
        is_finite: Whether all losses are finite.
    """

    group: Group
    is_due: Callable[[], bool] = lambda: False
    save: bool = False
    fits: bool = True
    is_finite: bool = True

    def report(self, *, fits: bool = True, unread: UnreadableError | None = None) -> list[float]:
        """Return what this process reports; the reports of all are to be summed."""
        own = signals.own_signal()
        return [
            float(not fits),
            float(unread is not None),
            *(float(own == number) for number in _SIGNALS),
            float(self.group.is_first and self.is_due()),
        ]

    def take(self, reports: list[float], unread: UnreadableError | None = None) -> None:
        """Act on the summed reports of all processes.

        Raises:
            UnreadableError: a process cannot decode images; the error names those of all.
        """
        misfits, unreads, *by_signal, due = reports
        if unreads:
            raise self._all_unreadable(unread)
        self.fits, self.save = not misfits, bool(due)
        asked = [number for number, count in zip(_SIGNALS, by_signal, strict=True) if count]
        if asked:
            signals.agree_on(max(asked))

    def _all_unreadable(self, own: UnreadableError | None) -> UnreadableError:
        found: list[tuple[str, str, bool]] = []
        if own is not None:
            found = [(str(path), why, path in own.passing) for path, why in own.found]
        every = [item for of_one in self.group.gather(found) for item in of_one]
        passing = {Path(path) for path, _, passes in every if passes}
        return UnreadableError([(Path(path), why) for path, why, _ in every], passing=passing)


def reading(batches: Iterable[T]) -> Iterator[T | Unread]:
    """Yield batches; one that cannot be decoded is yielded as the last one, instead of raised."""
    try:
        yield from batches
    except UnreadableError as error:
        yield Unread(error)


def in_step(batches: Iterable[T], group: Group, rounds: int) -> Iterator[T]:
    """Yield this process's batches; with several processes, all go on or all stop after each.

    Args:
        rounds: Largest number of batches that a process has.

    Raises:
        UnreadableError: a process cannot decode images.
        Interrupted: a signal asked some process to stop.
    """
    if not group.are_several:
        yield from batches
        return
    verdict, iterator = Verdict(group), reading(batches)
    for _ in range(rounds):
        batch = next(iterator, None)
        unread = batch.error if isinstance(batch, Unread) else None
        reports = torch.tensor(verdict.report(unread=unread))
        verdict.take(group.add_up(reports).tolist(), unread)
        if signals.asked():
            raise signals.interrupted()
        if batch is not None and not isinstance(batch, Unread):
            yield batch
