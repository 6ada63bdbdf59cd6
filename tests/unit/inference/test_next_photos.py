"""Tests of the choice of photos to label, on drawn embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.inference.next_photos import choose_photos, margins

DIMENSIONS = 16


def clusters(sizes: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings around orthogonal directions, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = 0.1 * torch.randn(len(at), DIMENSIONS, generator=generator)
    return torch.eye(DIMENSIONS)[at] + noise, at


def test_the_margin_is_that_of_the_two_best_classes() -> None:
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert margins(shares).tolist() == pytest.approx([0.2, 0.7])


def test_one_photo_of_each_kind_is_chosen() -> None:
    vectors, kinds = clusters([40, 10, 10, 10, 10])
    unsure = 0.5 + 0.1 * torch.rand(80, generator=torch.Generator().manual_seed(2))
    choice = choose_photos(vectors, unsure, torch.empty(0, DIMENSIONS), count=5, seed=0)
    assert sorted(kinds[choice.positions].tolist()) == [0, 1, 2, 3, 4]
    assert sum(choice.similar) == 40
    assert len(set(choice.positions)) == 5


def test_photos_that_the_network_is_sure_of_are_not_chosen() -> None:
    vectors, kinds = clusters([200, 10, 10])
    unsure = torch.where(kinds == 0, 0.01, 0.9)
    choice = choose_photos(vectors, unsure, torch.empty(0, DIMENSIONS), count=2, seed=0)
    assert sorted(kinds[choice.positions].tolist()) == [1, 2]


def test_the_least_certain_comes_first() -> None:
    vectors, _ = clusters([30, 30])
    unsure = torch.rand(60, generator=torch.Generator().manual_seed(1))
    choice = choose_photos(vectors, unsure, torch.empty(0, DIMENSIONS), count=6, seed=0)
    found = unsure[choice.positions].tolist()
    assert found == sorted(found, reverse=True)


def test_near_copies_are_left_out() -> None:
    known, _ = clusters([20, 20], seed=1)
    pool, _ = clusters([20, 20], seed=2)
    copies = torch.cat([known[:5], pool[:3]]) * 1.001
    everything = torch.cat([pool, copies])
    unsure = torch.cat([torch.full((40,), 0.9), torch.full((8,), 0.8)])
    choice = choose_photos(everything, unsure, known, count=48, seed=0)
    assert sorted(choice.positions) == list(range(40))
    assert (choice.near_known, choice.near_each_other) == (5, 3)


def test_a_small_pool_is_chosen_whole() -> None:
    vectors, _ = clusters([3])
    choice = choose_photos(vectors, torch.rand(3), torch.empty(0, DIMENSIONS), count=20, seed=0)
    assert sorted(choice.positions) == [0, 1, 2]


@pytest.mark.parametrize("known", [0, 1, 3])
def test_equal_and_single_photos_are_one(known: int) -> None:
    same = torch.ones(6, DIMENSIONS)
    choice = choose_photos(same, torch.rand(6), torch.ones(known, DIMENSIONS), count=2, seed=0)
    assert len(choice.positions) <= 2
