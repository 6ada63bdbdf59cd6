"""Tests of nearest neighbours in feature space, leaks and outliers."""

from __future__ import annotations

import pytest
import torch

from finetune.core.reporter import SilentReporter
from finetune.tuning import neighbours
from finetune.tuning.neighbours import (
    Nearest,
    are_leaks,
    directions,
    nearest,
    unlike_all,
    unlike_class,
)

QUIET = SilentReporter()


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return directions(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_nearest_rows_are_found_whatever_the_blocks(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES", size)
    monkeypatch.setattr(neighbours, "_ROWS", size + 3)
    queries, others = rows(20), rows(41, seed=1)
    expected = (queries @ others.T).topk(10, dim=1)
    found = nearest(queries, others, reporter=QUIET)
    assert torch.equal(found.at, expected.indices)
    assert torch.allclose(found.similarity, expected.values)


def test_a_row_is_not_its_own_neighbour_but_its_copy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES", 4)
    monkeypatch.setattr(neighbours, "_ROWS", 3)
    some = rows(9)
    some[7] = some[2]
    found = nearest(some, some, reporter=QUIET, but_self=True)
    assert found.at.shape == (9, 8)
    assert not (found.at == torch.arange(9)[:, None]).any()
    assert found.at[2, 0] == 7
    assert found.at[7, 0] == 2


def test_a_leak_is_less_than_half_as_far_as_the_tenth_nearest() -> None:
    similarity = torch.full((3, 10), 0.8)
    similarity[:, 0] = torch.tensor([0.91, 0.89, 0.8])
    found = Nearest(similarity, torch.zeros(3, 10, dtype=torch.int64))
    assert are_leaks(found).tolist() == [True, False, False]


def test_a_copy_is_a_leak_and_one_training_image_gives_none() -> None:
    train = rows(30)
    val = torch.cat([train[4:5] + 0.01, rows(5, seed=3)])
    assert are_leaks(nearest(directions(val), train, reporter=QUIET)).tolist()[0]
    assert not are_leaks(nearest(directions(val), train[4:5], reporter=QUIET)).any()


def test_an_image_unlike_all_others_is_an_outlier() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.ones(80, 6) + 0.2 * torch.randn(80, 6, generator=generator)
    features[11] = torch.tensor([1.0, -1, 1, -1, 1, -1])
    some = directions(features)
    found = unlike_all(nearest(some, some, reporter=QUIET, but_self=True))
    assert 11 in found.are_outliers.nonzero()[0]
    assert found.similarity.argmin() == 11


def test_an_image_unlike_its_class_is_an_outlier_of_the_class_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    features = torch.eye(2, 6)[labels] + 0.1 * torch.randn(80, 6, generator=generator)
    labels[10] = 1
    some = directions(features)
    found = unlike_class(some, labels)
    assert 10 in found.are_outliers.nonzero()[0]
    assert (
        10
        not in unlike_all(
            nearest(some, some, reporter=QUIET, but_self=True)
        ).are_outliers.nonzero()[0]
    )


def test_a_class_of_few_images_has_no_outliers() -> None:
    labels = torch.tensor([0] * 19 + [1] * 20)
    found = unlike_class(rows(39), labels)
    assert found.similarity[:19].isnan().all()
    assert not found.are_outliers[:19].any()
    assert not found.similarity[19:].isnan().any()
