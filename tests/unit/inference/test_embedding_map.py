"""Tests of the projections of embeddings to two dimensions."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from finetune.inference.embedding_map import pca, project

SIZES = [(3, 2), (5, 40), (60, 8), (40, 40), (320, 300), (280, 400)]
"""Numbers of images and values: either is the larger, below and above 256."""


def drawn(count: int, size: int, seed: int) -> Tensor:
    """Random embeddings with a clear order of the components, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(size, generator=generator) ** 3 * 10
    return torch.randn(count, size, generator=generator) * spread + 20


@pytest.mark.parametrize(("count", "size"), SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_pca_is_that_of_scikit_learn_with_the_same_signs(count: int, size: int, seed: int) -> None:
    vectors = drawn(count, size, seed)
    model = PCA(2, svd_solver="full")
    expected = model.fit_transform(vectors.double().numpy())
    positions, shares = pca(vectors)
    assert positions.numpy() == pytest.approx(expected, abs=1e-6 * np.abs(expected).max())
    assert shares == pytest.approx(tuple(model.explained_variance_ratio_), abs=1e-9)


@pytest.mark.parametrize("size", [8, 400])
def test_embeddings_on_a_line_have_a_flat_map(size: int) -> None:
    line = torch.linspace(0, 1, 300)[:, None] * drawn(1, size, 0)
    found = project(line, "pca")
    assert found.shares == (pytest.approx(1), 0)
    assert found.positions[:, 1].abs().max() == 0
    steps = found.positions[1:, 0] - found.positions[:-1, 0]
    assert torch.allclose(steps, steps[:1], rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_images_without_finite_numbers_have_no_position(bad: float) -> None:
    vectors = drawn(20, 12, 0)
    whole = vectors.clone()
    vectors[3, 5] = vectors[17, 0] = bad
    found = project(vectors, "pca")
    kept = [at for at in range(20) if at not in (3, 17)]
    assert found.kept.tolist() == kept
    assert torch.equal(found.positions, project(whole[kept], "pca").positions)


@pytest.mark.parametrize("scale", [1e-30, 1e37])
def test_values_near_the_ends_of_float32_are_projected(scale: float) -> None:
    vectors = torch.randn(30, 300, generator=torch.Generator().manual_seed(0))
    small, scaled = project(vectors, "pca"), project(vectors * scale, "pca")
    assert scaled.shares == pytest.approx(small.shares, rel=1e-4)


@pytest.mark.parametrize(
    "vectors",
    [
        torch.empty(0, 4),
        drawn(2, 4, 0),
        torch.cat([drawn(2, 4, 0), torch.full((5, 4), float("nan"))]),
        torch.zeros(9, 4),
        torch.full((9, 4), 3.3),
        3.3 * (1 + 1e-7 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))),
    ],
    ids=["none", "two", "two finite", "zeros", "equal", "equal but for rounding"],
)
@pytest.mark.parametrize("method", ["pca", "umap"])
def test_too_few_or_equal_embeddings_have_no_map(vectors: Tensor, method: str) -> None:
    found = project(vectors, method)
    assert found.problem is not None
    assert len(found.kept) == len(found.positions) == 0


class Reducer:
    """A stand-in for ``umap.UMAP`` that refuses what the real one does, and has a lost image."""

    made: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        Reducer.made = options

    def fit_transform(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        start = self.made["init"]
        assert 2 <= self.made["n_neighbors"] < len(vectors)
        assert np.isfinite(np.square(vectors)).all()
        if isinstance(start, str):
            start = np.random.RandomState(self.made["random_state"]).rand(len(vectors), 2)
        assert np.ptp(start, axis=0).min() > 0
        found = start.astype(np.float32)
        found[1] = np.nan
        return found


@pytest.fixture
def umap(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("umap")
    module.UMAP = Reducer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)


@pytest.mark.parametrize(
    "vectors",
    [
        drawn(3, 6, 0),
        drawn(50, 6, 0) * 1e30,
        torch.linspace(0, 1, 9)[:, None] * drawn(1, 6, 0),
    ],
    ids=["three", "huge", "on a line"],
)
@pytest.mark.usefixtures("umap")
def test_umap_is_given_what_it_accepts_and_lost_images_are_left_out(vectors: Tensor) -> None:
    found = project(vectors, "umap")
    assert found.shares is None
    assert found.kept.tolist() == [at for at in range(len(vectors)) if at != 1]
    assert found.positions.isfinite().all()
    assert torch.equal(found.positions, project(vectors, "umap").positions)


def test_the_real_umap_gives_the_same_map_twice() -> None:
    pytest.importorskip("umap", reason="the extra `map` is not installed")
    for vectors in (drawn(3, 6, 0), drawn(60, 6, 0), torch.arange(9.0)[:, None].expand(9, 6)):
        found = project(vectors, "umap")
        assert len(found.kept) == len(vectors)
        assert torch.equal(found.positions, project(vectors, "umap").positions)
