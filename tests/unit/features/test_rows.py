"""Rows of features are computed in batches, copied, stored in the background and kept on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from finetune.features.compute_format import ComputeFormat
from finetune.features.extractor import FeatureExtractor
from finetune.features.rows import Block, FeatureRows, _in_background, computed_together
from finetune.freezing.graph_split import Features
from finetune.results.features import FeatureCounts

CPU = torch.device("cpu")


@dataclass
class Doubling:
    """Extractor whose features are twice the pixels."""

    batch_rows: int
    device: torch.device = CPU
    computed: list[int] = field(default_factory=list)

    def rows_of(self, pixels: Tensor) -> Features:
        self.computed.append(len(pixels))
        return (2 * pixels, pixels.sum(dim=1))


def decoded(sizes: list[int]) -> Iterator[Block]:
    start = 0
    for size in sizes:
        yield Block(
            list(range(size)), (torch.arange(start, start + 2 * size).reshape(size, 2),), []
        )
        start += 2 * size


@pytest.mark.parametrize(
    ("batch_rows", "computed"), [(32, [32, 32, 0, 7]), (64, [64, 7]), (256, [71])]
)
def test_blocks_are_computed_together_and_yielded_one_by_one(
    batch_rows: int, computed: list[int]
) -> None:
    extractor = Doubling(batch_rows)
    blocks = list(computed_together(decoded([32, 32, 0, 7]), cast(FeatureExtractor, extractor)))
    assert [len(block.at) for block in blocks] == [32, 32, 0, 7]
    assert extractor.computed == [size for size in computed if size]
    doubled = torch.cat([block.features[0] for block in blocks if block.at])
    assert doubled.flatten().tolist() == list(range(0, 2 * 2 * 71, 2))
    assert all(len(block.features) == (2 if block.at else 0) for block in blocks)


@pytest.mark.parametrize(
    ("pads", "widest", "rows"), [(True, 10**5, 256), (True, 10**6, 128), (False, 10**5, 32)]
)
def test_a_gpu_computes_as_many_rows_at_once_as_its_memory_takes(
    pads: bool, widest: int, rows: int
) -> None:
    extractor = FeatureExtractor(
        prefix=None,
        crossing=(),
        form=ComputeFormat(),
        preprocessing=cast(Any, None),
        device=torch.device("cuda"),
        identity="",
        widest=widest,
        pads=pads,
    )
    assert extractor.batch_rows == rows


def test_work_in_the_background_keeps_its_order_and_is_done_at_the_end() -> None:
    done: list[tuple[int, bool]] = []
    main = threading.current_thread()
    with _in_background(lambda n: done.append((n, threading.current_thread() is main))) as call:
        for number in range(20):
            call(number)
    assert done == [(number, False) for number in range(20)]


def test_after_an_error_in_the_background_nothing_more_is_done() -> None:
    done: list[int] = []

    def fail_at_one(number: int) -> None:
        if number == 1:
            raise OSError(28, "no space")
        done.append(number)

    with pytest.raises(OSError, match="no space"), _in_background(fail_at_one) as call:
        for _ in map(call, range(3)):
            pass
    assert done == [0]


def test_rows_on_another_device_are_the_same_and_no_others() -> None:
    torch.manual_seed(0)
    tensors = (torch.randn(50, 3), torch.randn(50, 2, 2))
    rows = FeatureRows(tensors, torch.randperm(50)[:24].view(12, 2), FeatureCounts(0, 24, 0.0))
    moved = rows.moved_to(CPU)
    assert [len(tensor) for tensor in moved.tensors] == [24, 24]
    images, views = torch.randint(12, (40,)), torch.randint(2, (40,))
    for one, other in zip(rows.take(images, views), moved.take(images, views), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        rows.part([7, 2]).take(images[:2] * 0 + 1, views[:2]),
        moved.part([7, 2]).take(images[:2] * 0 + 1, views[:2]),
        strict=True,
    ):
        assert torch.equal(one, other)
