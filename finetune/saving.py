"""When checkpoints are written: at once where that costs little, else when it does, or at the end.

Twenty-five epochs of a head take less time than twenty-five writes that reach the disk.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from torch import Tensor, nn

from finetune.adapters import plain_state
from finetune.checkpoint import Metadata, save_checkpoint
from finetune.errors import OutputError
from finetune.run_folder import BEST, LAST
from finetune.tensor_file import copy_module_versions

_SHARE = 0.05
"""Of the elapsed time, that writing may take."""

_SECONDS = 60.0
"""After so long an epoch is written whatever it costs."""


class Saver:
    """Keeps the best and the last epoch, and writes them: a context that leaves nothing unwritten,
    also when it is left by an interruption.

    Args:
        unchanging: Names of tensors that no training changes: they are not copied.
    """

    def __init__(self, folder: Path, model: nn.Module, unchanging: Collection[str]) -> None:
        self.folder = folder
        self.model = model
        self.unchanging = frozenset(unchanging)
        self._pending: dict[str, tuple[dict[str, Tensor], Metadata]] = {}
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
            self.write()

    def keep(self, metadata: Metadata, *, is_best: bool) -> None:
        """Keep the model as it is after an epoch.

        Raises:
            OutputError: it could not be written.
        """
        kept = self._snapshot(), metadata
        self._pending[LAST] = kept
        if is_best:
            self._pending[BEST] = kept
        now = time.perf_counter()
        cheap = self._spent <= _SHARE * (now - self._start)
        if cheap or now - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what was kept since the last time."""
        start = time.perf_counter()
        for name in sorted(self._pending):
            state, metadata = self._pending[name]
            save_checkpoint(self.folder / name, state, metadata)
        self._pending.clear()
        self._written = time.perf_counter()
        self._spent += self._written - start

    def _snapshot(self) -> dict[str, Tensor]:
        state = plain_state(self.model)
        kept = OrderedDict(
            (name, tensor if name in self.unchanging else tensor.detach().clone())
            for name, tensor in state.items()
        )
        copy_module_versions(state, kept)
        return kept
