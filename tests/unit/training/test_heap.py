"""Tests that memory of large steps is reused, and returned to the system afterwards.

Each test measures a new process, because memory freed by earlier tests would be reused first.
"""

from __future__ import annotations

import platform

import pytest

if platform.libc_ver()[0] != "glibc":
    pytest.skip("the heap is glibc's: other systems have their own", allow_module_level=True)

from helpers.heap_pages import (
    SIZE,
    SMALL,
    TIMES,
    in_new_process,
    pages,
    pages_filled_apart_and_afterwards,
    pages_filled_in_large_steps,
    pages_filled_in_small_steps,
    resident_bytes_in_and_after_large_steps,
)


def test_large_tensors_of_a_large_step_are_kept_for_the_next() -> None:
    (filled,) = in_new_process(pages_filled_in_large_steps)
    assert filled < pages(SIZE)


def test_those_of_a_small_step_are_left_to_the_system() -> None:
    (filled,) = in_new_process(pages_filled_in_small_steps)
    assert filled > TIMES / 2 * pages(SIZE)


def test_afterwards_the_system_has_them_back() -> None:
    within, afterwards = in_new_process(resident_bytes_in_and_after_large_steps)
    assert within > SIZE / 2
    assert afterwards < SIZE / 2


def test_what_lies_apart_goes_back_at_once_and_later_tensors_are_kept_again() -> None:
    apart, afterwards = in_new_process(pages_filled_apart_and_afterwards)
    assert apart > TIMES / 2 * pages(SMALL)
    assert afterwards < pages(SMALL)
