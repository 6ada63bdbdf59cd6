"""Batches from worker processes, with one-line errors when workers fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.core.cores import available_cores
from finetune.core.errors import DataError
from finetune.core.signals import asked, without_word_of_dead_workers
from finetune.data.images import Images

_Batch = TypeVar("_Batch")

BATCHES_AHEAD = 2
"""Number of batches that each worker decodes ahead: the default of DataLoader."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_BYTES_WORTH_A_WORKER = 16 * 2**20
_MOST_WORKERS = 64
"""Largest value of ``data.workers``; some machines have this many cores for each GPU."""
_WITHOUT_WORKERS = (
    "set data.workers to 0 or to fewer; in a container, a larger --shm-size may also help"
)


@dataclass(frozen=True)
class _NoRoom:
    """Result of a worker whose batch did not fit into shared memory."""

    reason: str


class InSharedMemory:
    """``collate_fn`` for workers that moves its tensors to shared memory itself.

    DataLoader would move them in a thread of the worker. If that thread fails, the batch is lost,
    and training waits for it forever.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        batch = self.collate(samples)
        try:
            for part in batch:
                if isinstance(part, Tensor):
                    part.share_memory_()  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:
            return _NoRoom(str(error).splitlines()[0])
        return batch


class InWorkers(Generic[_Batch]):
    """Batches of a DataLoader with worker processes, with clear errors when workers fail.

    Raises:
        DataError: The workers cannot run, or one of them died.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[_Batch]:
        workers = self.loader.num_workers
        try:
            batches = iter(self.loader)
        except OSError as error:  # no semaphores, or no more processes
            raise DataError(
                f"{workers} worker processes cannot be started ({error.strerror or error})",
                kind="data.workers_not_started",
                key="data.workers",
                to_do=_WITHOUT_WORKERS,
            ) from error
        without_word_of_dead_workers()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            # Fetching the shared memory of a dead worker raises connection errors.
            except (RuntimeError, OSError, EOFError) as error:
                # A signal to all processes ends the workers too; the training loop handles that.
                if asked():
                    raise RuntimeError(str(error)) from error
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"one of {workers} worker processes died; the system may have run out of "
                    "memory",
                    kind="data.worker_died",
                    key="data.workers",
                    to_do=_WITHOUT_WORKERS,
                ) from error
            if isinstance(batch, _NoRoom):
                raise DataError(
                    f"too little shared memory in {_SHARED_MEMORY} for the batches of {workers} "
                    f"worker processes ({batch.reason})",
                    kind="data.shared_memory",
                    key="data.workers",
                    to_do="set data.workers: 0, or start the container with a larger --shm-size, "
                    "such as --shm-size=2g",
                )
            yield batch


def _most_workers(batch_bytes: int) -> int:
    """Return the number of workers whose batches fit into shared memory, at most `_MOST_WORKERS`.

    Training itself uses two more batches. A container has 64 MB of shared memory by default.
    """
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # a system without such a folder
        return _MOST_WORKERS
    return max(0, min(_MOST_WORKERS, (free // batch_bytes - BATCHES_AHEAD) // BATCHES_AHEAD))


def resolve_workers(
    workers: int | str, images: Images, device: torch.device, *, batch_bytes: int
) -> int:
    """Resolve ``data.workers`` to a number of decoding processes for the given images.

    With auto, the result is 0 if the CPU also computes, because threads of one process share its
    cores better, and for small data, because starting a process costs more than decoding. It is
    limited by the batches that fit into shared memory, of which a container has 64 MB by default.

    Args:
        batch_bytes: Size of the pixels of one batch, in bytes.
    """
    if isinstance(workers, int):
        return workers
    if device.type == "cpu" or images.num_bytes < _BYTES_WORTH_A_WORKER:
        return 0
    return min(available_cores(), _most_workers(batch_bytes))
