"""CPU threads: thread pools and torch's thread count."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from finetune.core.cores import available_cores
from finetune.core.device import starting_pool

WORTH_SHARING = 20_000_000
"""Minimum multiply-adds of a step's forward pass for using several threads: about a millisecond on
one core."""

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


@contextmanager
def one_thread_a_core(pieces: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with one thread per core, in each of which torch uses a single thread.

    For independent pieces of work, one core per piece is faster than all cores on each piece: an
    operation spread over cores ends by waiting for the slowest, which on a busy machine takes a
    scheduler time slice. With four other busy processes on two cores, MobileNetV2's prefix ran at
    233 images/s this way, and at 7 to 17 images/s the other way.

    Several pools may be open in different threads; only the pool's own threads are affected.

    Args:
        pieces: Number of pieces of work, an upper limit of the number of threads.
    """
    cores = min(available_cores(), pieces or sys.maxsize)
    all_started = threading.Barrier(cores + 1)
    defaults: list[int] = []

    def alone() -> None:
        defaults.append(torch.get_num_threads())
        torch.set_num_threads(1)
        with suppress(threading.BrokenBarrierError):
            all_started.wait()

    with ThreadPoolExecutor(cores, initializer=alone) as pool:
        try:
            # torch's thread count is per thread, but new threads start with the count that was set
            # last in any thread.
            with starting_pool:
                torch.get_num_threads()  # fixes this thread's count before the pool sets its own
                try:
                    for _ in range(cores):
                        pool.submit(int)
                    all_started.wait()
                finally:
                    if defaults:
                        restore = threading.Thread(
                            target=torch.set_num_threads, args=(defaults[0],)
                        )
                        restore.start()
                        restore.join()
            yield pool
        except BaseException:
            all_started.abort()  # if interrupted during the start, release the waiting threads
            raise


def on_cores(work: Callable[[_Piece], _Result], pieces: list[_Piece]) -> list[_Result]:
    """Return the results of ``work`` in order, one core per piece; see `one_thread_a_core`."""
    with one_thread_a_core(len(pieces)) as pool:
        return list(pool.map(work, pieces))


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Use a single torch thread if a step is too small to benefit from several.

    A step of a head takes microseconds, but on a busy machine each wait for another core takes
    milliseconds: 25 epochs of a head alone took 4.3 s with one thread and 9.8 s with two.

    Args:
        multiply_adds: Multiply-adds of a step's forward pass.
    """
    before = torch.get_num_threads()
    if multiply_adds < WORTH_SHARING:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
