"""When checkpoints are written: at once where that costs little, else when it does, or at the end.

Twenty-five epochs of a head take less time than twenty-five writes that reach the disk.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from finetune.checkpoint import Checkpoint, save_checkpoint
from finetune.errors import OutputError
from finetune.run_folder import BEST, LAST, PREVIOUS
from finetune.tensor_file import copy_module_versions

_SHARE = 0.05
"""Of the elapsed time, that writing may take."""


class Saver:
    """Keeps the best and the last state of a run, and writes them: a context that leaves nothing
    unwritten, also when it is left by an interruption.

    The best is written first: a last one without the best that it speaks of is never on disk.

    Args:
        unchanging: Names of tensors that no training changes: they are not copied.
        minutes: After so many, a state is written whatever it costs.
    """

    def __init__(self, folder: Path, unchanging: Collection[str], *, minutes: float) -> None:
        self.folder = folder
        self.unchanging = frozenset(unchanging)
        self._last: Checkpoint | None = None
        self._best: Checkpoint | None = None
        self._seconds = 60 * minutes
        self._start = self._written = time.perf_counter()
        self._spent = 0.0

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, OutputError):
            self._write()

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed that even the middle of an epoch is to be written."""
        return time.perf_counter() - self._written > self._seconds

    def keep(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Keep what stands at the end of an epoch; its tensors may change afterwards.

        Raises:
            OutputError: it could not be written.
        """
        elapsed = time.perf_counter() - self._start
        now = self._spent <= _SHARE * elapsed or self.is_due
        kept = checkpoint if now else _copied(checkpoint, self.unchanging)
        self._last = kept
        if is_best:
            self._best = kept
        if now:
            self._write()

    def keep_now(self, checkpoint: Checkpoint) -> None:
        """Write what stands in the middle of an epoch.

        Raises:
            OutputError: it could not be written.
        """
        self._last = checkpoint
        self._write()

    def _write(self) -> None:
        """Write what was kept since the last time."""
        start = time.perf_counter()
        best, last, self._best, self._last = self._best, self._last, None, None
        if best is not None:
            save_checkpoint(self.folder / BEST, best.model, best.metadata)
        if last is not None:
            save_checkpoint(
                self.folder / LAST,
                *(last.model, last.metadata),
                training=last.training,
                keep=self.folder / PREVIOUS,
            )
        self._written = time.perf_counter()
        self._spent += self._written - start


def _copied(checkpoint: Checkpoint, unchanging: Collection[str]) -> Checkpoint:
    """The same, which later training does not reach."""
    training = checkpoint.training
    if training is not None:
        training = replace(training, tensors=_copies(training.tensors, ()))
    model = _copies(checkpoint.model, unchanging)
    return replace(checkpoint, model=model, training=training)


def _copies(tensors: Mapping[str, Tensor], unchanging: Collection[str]) -> OrderedDict[str, Tensor]:
    copies = OrderedDict(
        # On the CPU, where they are written from: a GPU may have no room for another copy.
        (name, tensor if name in unchanging else tensor.detach().to("cpu", copy=True))
        for name, tensor in tensors.items()
    )
    copy_module_versions(tensors, copies)
    return copies
