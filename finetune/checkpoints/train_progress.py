"""Train progress: epoch, batch and step counters; imports no torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass


@dataclass
class TrainProgress:
    """Progress of training, between two steps.

    Sample order, views and dropout are functions of the seed and these numbers, so that no other
    random state needs to be saved.

    Attributes:
        stage: Index of the current stage, from 0; a training loop trains one stage.
        epoch: Current epoch, from 1.
        batch: Number of finished batches of the epoch; all of them if only evaluation remains.
        batches, steps: Number of batches and optimizer steps since the start of the stage.
        at_once: Micro-batch size since memory ran out; 0 for whole batches.
        lr: Learning rate of the epoch's first step.
        elapsed_s: Seconds spent on the epoch so far.
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
        """Count one optimizer step over ``batches`` batches."""
        self.batch += batches
        self.batches += batches
        self.steps += 1
        self.elapsed_s = elapsed_s

    def begin_next_epoch(self) -> None:
        """Start the next epoch, after the current one was evaluated."""
        self.epoch += 1
        self.batch = 0
        self.lr = self.elapsed_s = 0.0

    def after_epoch(self) -> TrainProgress:
        """Return a copy at the start of the next epoch."""
        later = copy.copy(self)
        later.begin_next_epoch()
        return later

    def __str__(self) -> str:
        if not self.batch:
            return f"the start of epoch {self.epoch}"
        return f"epoch {self.epoch}, after batch {self.batch}"
