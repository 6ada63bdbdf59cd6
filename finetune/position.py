"""Where training stands; imports no torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass


@dataclass
class Position:
    """Where training stands, between two steps.

    Order, views and dropout are functions of the seed and of these numbers, so that they stand for
    all of a run's randomness.

    Attributes:
        stage: Of a run in several, from 0; a loop trains one.
        epoch: Under way, from 1.
        batch: Batches of it that are done; all of them once only its evaluation is due.
        batches, steps: Batches and optimizer steps done since the stage began.
        at_once: Images that are computed together since memory ran out; 0 for all of a batch.
        lr: Of the epoch's first step.
        elapsed_s: Spent on the epoch so far.
    """

    stage: int = 0
    epoch: int = 1
    batch: int = 0
    batches: int = 0
    steps: int = 0
    at_once: int = 0
    lr: float = 0.0
    elapsed_s: float = 0.0

    def advance(self, batches: int, *, elapsed_s: float) -> None:
        """A step of so many batches was done."""
        self.batch += batches
        self.batches += batches
        self.steps += 1
        self.elapsed_s = elapsed_s

    def begin_next_epoch(self) -> None:
        """The epoch under way was evaluated."""
        self.epoch += 1
        self.batch = 0
        self.lr = self.elapsed_s = 0.0

    def after_epoch(self) -> Position:
        """A copy, once the epoch under way was evaluated."""
        later = copy.copy(self)
        later.begin_next_epoch()
        return later

    def __str__(self) -> str:
        if not self.batch:
            return f"the start of epoch {self.epoch}"
        return f"epoch {self.epoch} behind batch {self.batch}"
