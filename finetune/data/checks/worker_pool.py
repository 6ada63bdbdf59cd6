"""Full file inspection in worker processes that may crash; imports no torch."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

from finetune.core.errors import DataError
from finetune.data.checks.inspect_file import FileInspection, inspect_file, without_warnings

_FILES_AT_ONCE = 32
_MOST_CRASHES_ON_END = 10

Inspected = list[tuple[int, FileInspection]]
Inspect = Callable[[list[tuple[int, str]]], Inspected]


def inspect_some(places: list[tuple[int, str]]) -> Inspected:
    """Inspect files fully, in a worker process."""
    return [(at, inspect_file(path, full=True)) for at, path in places]


def inspect_all(
    paths: Sequence[str],
    positions: Sequence[int],
    workers: int,
    inspect: Inspect = inspect_some,
) -> Iterator[Inspected]:
    """Yield full inspections of ``paths[position]`` for each position, in batches, unordered.

    If a worker dies (a decoder crashes, or the system is out of memory), the files in progress are
    inspected again one by one, so that the next crash names its file.

    Raises:
        DataError: Workers die on every file.
    """
    chunks = deque(
        list(positions[start : start + _FILES_AT_ONCE])
        for start in range(0, len(positions), _FILES_AT_ONCE)
    )
    while chunks:
        crashed = yield from _until_crash(paths, chunks, workers, 2 * workers, inspect)
        alone = deque([at] for chunk in crashed for at in chunk)
        crashes = 0
        while alone:
            before = len(alone)
            crashed = yield from _until_crash(paths, alone, 1, 1, inspect)
            for [at] in crashed:
                crashes = crashes + 1 if before - len(alone) == 1 else 1
                if crashes == _MOST_CRASHES_ON_END:
                    raise DataError(
                        f"{crashes} processes died one after another, each on another file; the "
                        f"last file was {paths[at]}",
                        kind="data.worker_died",
                        to_do="is there enough memory, and may this system start processes?",
                    )
                reason = "the process that decoded it died; it may need more memory than there is"
                yield [(at, FileInspection(reason=reason, decoded=True, lasting=False))]


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked, because this process may have threads and locks.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Initialise a worker: ignore SIGINT, which the parent handles, and exit with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    without_warnings()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _until_crash(
    paths: Sequence[str],
    chunks: deque[list[int]],
    workers: int,
    most_pending: int,
    inspect: Inspect,
) -> Generator[Inspected, None, list[list[int]]]:
    """Inspect chunks until none is left or a worker dies; return those that it left unfinished."""
    pool = _pool(min(workers, len(chunks)))
    pending: dict[Future[Inspected], list[int]] = {}
    crashed: list[list[int]] = []
    try:
        while pending or (chunks and not crashed):
            while chunks and len(pending) < most_pending and not crashed:
                chunk = chunks.popleft()
                try:
                    pending[pool.submit(inspect, [(at, paths[at]) for at in chunk])] = chunk
                except BrokenProcessPool:
                    crashed.append(chunk)
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    crashed.append(chunk)
                else:
                    yield future.result()
        return crashed
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
