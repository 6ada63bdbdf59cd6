"""Measurements of glibc's heap, in functions that a new process imports by name.

Test modules cannot be imported there: only the folder ``tests`` is on the path of a run.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from finetune.core.memory import heap_for, large_apart
from finetune.core.threads import WORTH_SHARING

SIZE = 64 * 2**20
"""Bytes of a tensor: above what glibc itself ever keeps."""
SMALL = 4 * 2**20
TIMES = 10
WARM_UP = 20
"""Steps after which no more pages may be filled: glibc's heap takes up to eight to settle.

A small block that was cut from behind a tensor, and that its thread then keeps (seven of a size),
leaves the tensor's place a few bytes too short for the alignment of the next.
"""


def in_new_process(measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(measure).result()


def pages_filled(size: int, times: int = TIMES) -> int:
    """By the system, for a tensor that is written and freed so often."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def pages(size: int) -> int:
    return size // resource.getpagesize()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def pages_filled_in_large_steps() -> tuple[int, ...]:
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(SIZE, WARM_UP)
        return (pages_filled(SIZE),)


def pages_filled_in_small_steps() -> tuple[int, ...]:
    with heap_for(WORTH_SHARING):
        return (pages_filled(SIZE),)


def resident_bytes_in_and_after_large_steps() -> tuple[int, ...]:
    before = resident_bytes()
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(SIZE, 1)
        within = resident_bytes() - before
    return within, resident_bytes() - before


def pages_filled_apart_and_afterwards() -> tuple[int, ...]:
    with large_apart():
        apart = pages_filled(SMALL)
    pages_filled(SMALL, WARM_UP)
    return apart, pages_filled(SMALL)
