"""Full file inspection in worker processes that may crash; imports no torch."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

from finetune.core.errors import DataError
from finetune.data.checks.inspect_file import FileInspection, inspect_file, without_warnings

_FILES_AT_ONCE = 32
_MOST_CRASHES_ON_END = 10

Looked = list[tuple[int, FileInspection]]
LookAtSome = Callable[[list[tuple[int, str]]], Looked]


def inspect_some(places: list[tuple[int, str]]) -> Looked:
    """Inspect files fully, in a worker process."""
    return [(at, inspect_file(path, full=True)) for at, path in places]


def inspect_all(
    paths: Sequence[str],
    positions: Sequence[int],
    workers: int,
    look: LookAtSome = inspect_some,
) -> Iterator[Looked]:
    """Yield full inspections of ``paths[position]`` for each position, in batches, unordered.

    If a worker dies (a decoder crashes, or the system is out of memory), the files in progress are
    inspected one by one to find the cause.

    Raises:
        DataError: Workers die on every file.
    """
    chunks = deque(
        list(positions[start : start + _FILES_AT_ONCE])
        for start in range(0, len(positions), _FILES_AT_ONCE)
    )
    while chunks:
        suspects: list[list[int]] = []
        yield from _look_until_broken(paths, chunks, workers, suspects, look)
        yield from _look_one_by_one(paths, [at for chunk in suspects for at in chunk], look)


def usable_cpus() -> int:
    """Return the number of CPUs this process may use, by affinity and cgroup quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, count)


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


def _look_until_broken(
    paths: Sequence[str],
    chunks: deque[list[int]],
    workers: int,
    suspects: list[list[int]],
    look: LookAtSome,
) -> Iterator[Looked]:
    """Process chunks until none is left or a worker dies; ``suspects`` are those in progress."""
    pool = _pool(min(workers, len(chunks)))
    under_way: dict[Future[Looked], list[int]] = {}
    try:
        while chunks or under_way:
            while chunks and len(under_way) < 2 * workers and not suspects:
                chunk = chunks.popleft()
                try:
                    under_way[pool.submit(look, [(at, paths[at]) for at in chunk])] = chunk
                except BrokenProcessPool:
                    suspects.append(chunk)
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = under_way.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(chunk)
                else:
                    yield future.result()
            if suspects and not under_way:
                return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _look_one_by_one(
    paths: Sequence[str], suspects: Sequence[int], look: LookAtSome
) -> Iterator[Looked]:
    pool: ProcessPoolExecutor | None = None
    crashes = 0
    try:
        for at in suspects:
            pool = pool or _pool(1)
            try:
                yield pool.submit(look, [(at, paths[at])]).result()
                crashes = 0
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                pool = None
                crashes += 1
                if crashes == _MOST_CRASHES_ON_END:
                    raise DataError(
                        f"{crashes} processes died one after the other, each on another file, the "
                        f"last on {paths[at]}: this system does not let them run; "
                        "is there enough memory?"
                    ) from None
                reason = "the process that decoded it died; it may need more memory than there is"
                yield [(at, FileInspection(reason=reason, decoded=True, lasting=False))]
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
