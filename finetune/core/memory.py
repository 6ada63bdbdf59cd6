"""Process memory: glibc's heap, free and peak memory, out-of-memory errors."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from finetune.core.cores import processes_here
from finetune.core.threads import WORTH_SHARING, threads_for

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]

_M_ARENA_MAX, _M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -4, -3, -1
"""Parameter numbers of mallopt, from glibc's malloc.h."""
_MMAPS = 65_536
"""Default of M_MMAP_MAX."""
_NEVER = -1
_LARGE_BYTES = 2**18
_MOST_IN_HEAP, _MOST_KEPT = 32 * 2**20, 64 * 2**20
"""Defaults that glibc would reach by adapting its mmap and trim thresholds."""

_WORTH_KEEPING = 100 * WORTH_SHARING

_SHARE_OF_MEMORY = 4
"""Decoded images, or features without room on disk, may use one part in this many of the free
memory."""


def use_one_heap() -> None:
    """Make all threads share glibc's first heap, instead of each keeping freed memory of its own.

    This reduces the peak memory of the frozen prefix in two threads by a fifth (526 instead of
    651 MiB, MobileNetV2), at the same speed: tensors are too large for lock contention to matter.
    """
    _mallopt(_M_ARENA_MAX, 1)


@contextmanager
def heap_for(multiply_adds: int) -> Iterator[None]:
    """If a step is large, keep the memory that it frees for the next step.

    glibc maps every tensor above 32 MiB separately and unmaps it when it is freed, so the system
    zeroes its pages again in each step: a fifth of the CPU time when all of MobileNetV2 is trained.
    With the memory kept, an epoch took 2.86 instead of 3.63 s, with a tenth more memory.
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
    """Allocate tensors outside of glibc's heap, to avoid fragmenting it.

    Otherwise permanent allocations, such as oneDNN's kernels for a new shape, would be placed after
    tensors in the heap, and the gap left by the freed tensors could not be returned to the system.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, _MOST_IN_HEAP)
        _mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


@contextmanager
def steps_of(multiply_adds: int) -> Iterator[None]:
    """Configure threads and heap for training steps of this size.

    Args:
        multiply_adds: Multiply-adds of a step's forward pass.
    """
    with threads_for(multiply_adds), heap_for(multiply_adds):
        yield


def _mallopt(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(parameter, value)


def release_memory() -> None:
    """Return unused memory to the system: objects in reference cycles, such as copies of a network
    with their graphs, and freed memory that glibc keeps."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def available_memory_bytes() -> int:
    """Return the memory available without swapping; 2 GiB if the system does not report it."""
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
    """Return the memory that this process may use to cache what it could compute again."""
    return available_memory_bytes() // (_SHARE_OF_MEMORY * processes_here())


def spare_gpu_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device that may be used to keep what the CPU keeps as well."""
    free, _ = torch.cuda.mem_get_info(device)
    return free // _SHARE_OF_MEMORY


def peak_gpu_memory_mib(device: torch.device) -> int | None:
    """Return the peak memory of this process's tensors on a CUDA device, in MiB; None on others."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20)


def peak_memory_mib() -> int | None:
    """Return the peak resident memory of this process in MiB; None if the system does not report
    it."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""Messages of out-of-memory RuntimeErrors: torch's CPU allocator, MPS, CUDA, cuBLAS and cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the machine is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
