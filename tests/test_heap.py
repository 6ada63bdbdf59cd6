"""What a large step frees is there for the next one, and goes back to the system afterwards."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from finetune.runtime import WORTH_SHARING, heap_for

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the heap is glibc's: other systems have their own"
)

MIB = 2**20
SIZE = 64 * MIB
"""Above what glibc itself ever keeps."""


def pages_filled(times: int) -> int:
    """By the system, for a tensor that is written and freed so often."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(SIZE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_large_tensors_of_a_large_step_are_kept_for_the_next() -> None:
    pages = SIZE // resource.getpagesize()
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(1)
        assert pages_filled(8) < pages / 2
    assert pages_filled(8) >= 8 * pages / 2


def test_those_of_a_small_step_are_left_to_the_system() -> None:
    with heap_for(WORTH_SHARING):
        assert pages_filled(8) >= 8 * SIZE // resource.getpagesize() / 2


def test_afterwards_the_system_has_them_back() -> None:
    before = resident_bytes()
    with heap_for(1000 * WORTH_SHARING):
        pages_filled(1)
        assert resident_bytes() - before > SIZE / 2
    assert resident_bytes() - before < SIZE / 2
