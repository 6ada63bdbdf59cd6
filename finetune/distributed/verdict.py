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
from finetune.core.errors import DataError, UnreadableError
from finetune.distributed.group import Group

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StepStopped(Exception):  # noqa: N818
    """A signal has ended the worker processes of some process before a step; no weight changed."""


@dataclass(frozen=True)
class Unread:
    """Batch that this process cannot read.

    Attributes:
        error: The images that cannot be decoded; None if a signal has ended the worker processes.
    """

    error: UnreadableError | None


@dataclass
class Verdict:
    """Reports of all processes about a step.

    Attributes:
        is_due: Whether a checkpoint should be saved; the first process decides.
        save: Whether one is due after the step that ended last.
        fits: Whether memory sufficed in all processes.
    """

    group: Group
    is_due: Callable[[], bool] = lambda: False
    save: bool = False
    fits: bool = True

    def report(self, *, fits: bool = True, unread: Unread | None = None) -> list[float]:
        """Return what this process reports; the reports of all are to be summed."""
        own = signals.own_signal()
        return [
            float(not fits),
            float(unread is not None and unread.error is not None),
            float(unread is not None and unread.error is None),
            *(float(own == number) for number in _SIGNALS),
            float(self.group.is_first and self.is_due()),
        ]

    def take(self, reports: list[float], unread: Unread | None = None) -> None:
        """Act on the summed reports of all processes.

        Raises:
            UnreadableError: a process cannot decode images; the error names those of all.
            StepStopped: a process cannot read its batch because of a signal.
        """
        misfits, unreads, stops, *by_signal, due = reports
        asked = [number for number, count in zip(_SIGNALS, by_signal, strict=True) if count]
        if asked:
            signals.agree_on(max(asked))
        if unreads:
            raise self._all_unreadable(None if unread is None else unread.error)
        if stops:
            raise StepStopped
        self.fits, self.save = not misfits, bool(due)

    def exchange(self, unread: Unread | None) -> None:
        """Report, and act on the reports of all processes.

        Raises:
            UnreadableError, StepStopped: as `take`.
        """
        reports = torch.tensor(self.report(unread=unread))
        self.take(self.group.add_up(reports).tolist(), unread)

    def _all_unreadable(self, own: UnreadableError | None) -> UnreadableError:
        found: list[tuple[str, str, bool]] = []
        if own is not None:
            found = [(str(path), why, path in own.passing) for path, why in own.found]
        # A photo may be in the shares of two processes, of which one mixes it with its own.
        every = {item[0]: item for of_one in self.group.gather(found) for item in of_one}.values()
        passing = {Path(path) for path, _, passes in every if passes}
        return UnreadableError([(Path(path), why) for path, why, _ in every], passing=passing)


def reading(batches: Iterable[T]) -> Iterator[T | Unread]:
    """Yield batches; one that cannot be read is yielded as the last one, instead of raised."""
    try:
        yield from batches
    except UnreadableError as error:
        yield Unread(error)
    except (RuntimeError, DataError):
        if not signals.own_signal():
            raise
        yield Unread(None)  # the same signal has ended the worker processes


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
        try:
            verdict.exchange(batch if isinstance(batch, Unread) else None)
        except StepStopped:
            raise signals.interrupted() from None
        if signals.asked():
            raise signals.interrupted()
        if batch is not None and not isinstance(batch, Unread):
            yield batch
