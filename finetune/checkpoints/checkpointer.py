"""Checkpointer: decides when checkpoints are written.

They are written immediately if writing takes little of the elapsed time, else later or at the end:
25 epochs of a head take less time than 25 synced writes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune.checkpoints.checkpoint import Checkpoint, save_checkpoint
from finetune.checkpoints.run_dir import BEST, LAST, PREVIOUS
from finetune.checkpoints.safe_load import copy_module_versions
from finetune.core.errors import OutputError

_SHARE = 0.05
"""Maximum share of the elapsed time spent on writing checkpoints."""


class Checkpointer:
    """Keeps the best and the last checkpoint of a run in memory and writes them to disk.

    A context manager: on exit, also after an interruption, all kept checkpoints are written. The
    best one is written first, so that ``last.pt`` never refers to a ``best.pt`` not yet on disk.

    Of several processes only the first one has checkpoints to write; the others keep none.

    Args:
        folder: Run directory.
        frozen: Names of the frozen tensors, which are not copied.
        minutes: Minutes after which a checkpoint is written regardless of cost.
        writes: Whether this process writes checkpoints.
    """

    def __init__(
        self, folder: Path, frozen: Collection[str], *, minutes: float, writes: bool = True
    ) -> None:
        self.folder = folder
        self._writes = writes
        self.frozen = frozenset(frozen)
        self._last: Checkpoint | None = None
        self._best: Checkpoint | None = None
        self._seconds = 60 * minutes
        self._start = self._written = time.perf_counter()
        self._spent = 0.0

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OutputError):
            self._write()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint should be written now, even in the middle of an epoch."""
        return time.perf_counter() - self._written > self._seconds

    def keep(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Keep the checkpoint of a finished epoch; its tensors may change afterwards.

        Raises:
            OutputError: The checkpoint cannot be written.
        """
        if not self._writes:
            return
        elapsed = time.perf_counter() - self._start
        now = self._spent <= _SHARE * elapsed or self.is_due
        kept = checkpoint if now else _copied(checkpoint, self.frozen)
        self._last = kept
        if is_best:
            self._best = kept
        if now:
            self._write()

    def keep_now(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in the middle of an epoch.

        Raises:
            OutputError: The checkpoint cannot be written.
        """
        if self._writes:
            self._last = checkpoint
            self._write()

    def _write(self) -> None:
        """Write the checkpoints kept since the last write."""
        start = time.perf_counter()
        best, last, self._best, self._last = self._best, self._last, None, None
        if best is not None:
            save_checkpoint(self.folder / BEST, best.model, best.metadata)
        if last is not None:
            save_checkpoint(
                self.folder / LAST,
                last.model,
                last.metadata,
                training=last.training,
                keep=self.folder / PREVIOUS,
            )
        self._written = time.perf_counter()
        self._spent += self._written - start


def _copied(checkpoint: Checkpoint, frozen: Collection[str]) -> Checkpoint:
    """Copy a checkpoint, so that further training does not change it."""
    training = checkpoint.training
    if training is not None:
        training = replace(training, tensors=_copies(training.tensors, ()))
    model = _copies(checkpoint.model, frozen)
    return replace(checkpoint, model=model, training=training)


def _copies(tensors: Mapping[str, Tensor], frozen: Collection[str]) -> OrderedDict[str, Tensor]:
    copies = OrderedDict(
        # On the CPU, since a GPU may have no memory for another copy.
        (name, tensor if name in frozen else tensor.detach().to("cpu", copy=True))
        for name, tensor in tensors.items()
    )
    copy_module_versions(tensors, copies)
    return copies
