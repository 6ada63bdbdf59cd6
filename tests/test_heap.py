"""What a large step frees is there for the next one, and goes back to the system afterwards."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from finetune.runtime import WORTH_SHARING, heap_for, large_apart

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the heap is glibc's: other systems have their own"
)

SIZE = 64 * 2**20
"""Bytes of a tensor: above what glibc itself ever keeps."""
TIMES = 10
WARM_UP = 20
"""Steps after which no more pages may be filled: glibc's heap takes up to eight to settle.

A small block that was cut from behind a tensor, and that its thread then keeps (seven of a size),
leaves the tensor's place a few bytes too short for the alignment of the next.
"""


def pages_filled(size: int, times: int = TIMES) -> int:
    """By the system, for a tensor that is written and freed so often."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_large_tensors_of_a_large_step_are_kept_for_the_next() -> None:
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(SIZE, WARM_UP)
        assert pages_filled(SIZE) < SIZE / resource.getpagesize()


def test_those_of_a_small_step_are_left_to_the_system() -> None:
    size = 3 * SIZE  # more than what an earlier large step left to the heap to fill again
    with heap_for(WORTH_SHARING):
        assert pages_filled(size) > TIMES / 2 * size / resource.getpagesize()


def test_afterwards_the_system_has_them_back() -> None:
    before = resident_bytes()
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(SIZE, 1)
        assert resident_bytes() - before > SIZE / 2
    assert resident_bytes() - before < SIZE / 2


def test_what_lies_apart_goes_back_at_once_and_later_tensors_are_kept_again() -> None:
    size = 4 * 2**20
    with large_apart():
        assert pages_filled(size) > TIMES / 2 * size / resource.getpagesize()
    pages_filled(size, WARM_UP)
    assert pages_filled(size) < size / resource.getpagesize()
