"""The machine: device, determinism, versions, memory."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import resource
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import PIL
import torch
import torchvision

from finetune import __version__
from finetune.errors import ConfigError
from finetune.locks import lock_across_forks

_M_ARENA_MAX, _M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -4, -3, -1
"""mallopt's own numbers for them, in glibc's malloc.h."""
_MMAPS = 65_536
"""What M_MMAP_MAX is by default."""
_NEVER = -1
_LARGE_BYTES = 2**18
_MOST_IN_HEAP, _MOST_KEPT = 32 * 2**20, 64 * 2**20
"""As far as glibc itself goes, by and by, with what it keeps in its heap and at the heap's end."""

WORTH_SHARING = 20_000_000
"""Multiply-adds of a step's forward pass: about a millisecond of one core."""

_WORTH_KEEPING = 100 * WORTH_SHARING

_SHARE_OF_MEMORY = 4
"""Decoded images, or features that find no disk, may take this part of what is free."""

_starting_pool = lock_across_forks()

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def select_device(wanted: str) -> torch.device:
    """The device that ``runtime.device`` means here.

    Raises:
        ConfigError: this machine does not have it.
    """
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, present in has.items() if present))
    if not has[wanted]:
        present = [name for name, there in has.items() if there]
        raise ConfigError(
            f"runtime.device: torch finds no {wanted} here; it finds {', '.join(present)}"
        )
    return torch.device(wanted)


def make_deterministic(device: torch.device) -> None:
    """Same input, same bits, on one machine: choose deterministic kernels where there is a choice.

    Operations that have no deterministic form on CUDA, such as the backward pass of attention, run
    all the same: a warning in the middle of an epoch would help nobody.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if device.type == "cuda":
        warnings.filterwarnings("ignore", ".*(a deterministic implementation|non-deterministic).*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory before it is written, and to fill it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def one_thread_a_core(pieces: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool with a thread for each core, in which torch computes without further threads.

    Args:
        pieces: No more threads than there are pieces of work.

    Where work falls into independent pieces, a core for each piece beats all cores on each: an
    operation that is spread over cores ends by waiting for the last of them, and on a machine with
    other work that wait is a turn of the scheduler. With four other busy processes on two cores
    MobileNetV2's prefix ran at 233 images/s this way, and at 7 to 17 the other way.

    Pools may be open in several threads at once; no thread but the pool's own is affected.
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
            # The number of threads is each thread's own; but the last one that was set anywhere is
            # what new threads begin with.
            with _starting_pool:
                torch.get_num_threads()  # so that this thread does not begin with the pool's
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
            all_started.abort()  # an interruption while they start: nobody waits for the rest
            raise


def on_cores(work: Callable[[_Piece], _Result], pieces: list[_Piece]) -> list[_Result]:
    """The result of each piece of work, in order: a core for each, as `one_thread_a_core` says."""
    with one_thread_a_core(len(pieces)) as pool:
        return list(pool.map(work, pieces))


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Compute in one thread where a step is too small to be worth sharing among cores.

    A head's step takes microseconds; on a busy machine each wait for another core takes
    milliseconds: 25 epochs of a head alone took 4.3 s in one thread and 9.8 s in two.
    """
    before = torch.get_num_threads()
    if multiply_adds < WORTH_SHARING:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Of this process: a container or a job may have fewer than the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _share_of_container()))


def _share_of_container() -> int:
    """Cores that Linux's control group leaves to this process."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return sys.maxsize


def use_one_heap() -> None:
    """Let all threads share glibc's first heap: each would keep what it once needed to itself.

    The frozen part in two threads then holds a fifth less memory at its peak (526 against 651 MiB,
    MobileNetV2), at the same speed: tensors are too large for the heaps' locks to matter.
    """
    _mallopt(_M_ARENA_MAX, 1)


@contextmanager
def heap_for(multiply_adds: int) -> Iterator[None]:
    """Where a step is large, keep what it frees for the next one.

    glibc maps every tensor above 32 MiB by itself and unmaps it when it is freed, so that the
    system fills its pages with zeros in each step anew: a fifth of the processor's time where all
    of MobileNetV2 trains. Kept, an epoch took 2.86 in place of 3.63 s, with a tenth more memory.
    """
    if multiply_adds < _WORTH_KEEPING:
        yield
        return
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_MAX, _MMAPS)
        _mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
        release_memory()


@contextmanager
def large_apart() -> Iterator[None]:
    """Tensors lie outside of glibc's heap: what stays there for good, such as oneDNN's kernels for
    a shape that is met for the first time, comes to lie behind no gap that they leave.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, _MOST_IN_HEAP)
        _mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


@contextmanager
def steps_of(multiply_adds: int) -> Iterator[None]:
    """The machine as it suits training steps of this size, by their forward pass."""
    with threads_for(multiply_adds), heap_for(multiply_adds):
        yield


def _mallopt(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(parameter, value)


def release_memory() -> None:
    """Give back to the system what nobody needs any more: copies of a network, say, whose graphs
    refer to themselves, and what glibc keeps of what was freed."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def versions() -> dict[str, str]:
    """What a checkpoint should say it was made with."""
    return {
        "finetune": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def available_memory_bytes() -> int:
    """Physical memory that can be had without swapping, where the system tells; else a guess."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2 * 2**30


def spare_memory_bytes() -> int:
    """What a run may take to keep at hand what it could compute again."""
    return available_memory_bytes() // _SHARE_OF_MEMORY


def peak_memory_mib() -> int:
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
