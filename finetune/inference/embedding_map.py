"""Projection of embeddings to two dimensions, by PCA or UMAP, for the map of the report page."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 3
"""Minimum number of images; two would always be on a line."""
_AT_ONCE = 4096
_ROUNDING = 1e-6
"""Largest spread, relative to the largest value, of embeddings that count as equal: the same image
may differ by float32's rounding from batch to batch."""
_ALL_EIGENVECTORS, _BLOCK = 256, 4
"""Largest matrix whose eigenvectors are all computed; else number of vectors that are iterated."""
_NEIGHBOURS, _SEED = 15, 0


@dataclass(frozen=True)
class Projection:
    """Positions of images on a map.

    Attributes:
        kept: Indices of the images that have a position, ascending; the embeddings of the others
            are not finite.
        positions: ``(len(kept), 2)`` float64.
        shares: Share of the variance of the embeddings along each axis; None for UMAP.
        problem: Why there is no position at all; None if there are some.
    """

    kept: Tensor
    positions: Tensor
    shares: tuple[float, float] | None
    problem: str | None = None


def project(vectors: Tensor, method: str) -> Projection:
    """Project embeddings ``(n, d)`` to two dimensions; the same embeddings give the same positions.

    Args:
        method: ``pca`` or ``umap``; the latter needs the package umap-learn.
    """
    kept = vectors.isfinite().all(dim=1).nonzero()[:, 0]
    if len(kept) < len(vectors):
        vectors = vectors[kept]
    problem = _problem(vectors)
    if problem is not None:
        return Projection(kept[:0], torch.empty(0, 2, dtype=torch.float64), None, problem)
    positions, shares = pca(vectors)
    if method == "pca":
        return Projection(kept, positions, shares)
    positions = _umap(vectors, positions)
    finite = positions.isfinite().all(dim=1)
    return Projection(kept[finite], positions[finite], None)


def _problem(vectors: Tensor) -> str | None:
    if len(vectors) < FEWEST:
        return f"fewer than {FEWEST} images have an embedding of finite numbers"
    # In float64, in which the square of no float32 overflows.
    spread = vectors.double().var(dim=0, correction=0).mean().sqrt()
    if spread <= _ROUNDING * vectors.abs().max():
        return "the embeddings of all images are equal"
    return None


def pca(vectors: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Return the first two principal components, and their shares of the variance.

    The sign of a component is that with which the largest of its loadings is positive, as in
    scikit-learn.

    Args:
        vectors: ``(n, d)``, finite and not all equal; n and d are at least 2.

    Returns:
        Positions ``(n, 2)`` float64, and the shares.
    """
    mean = vectors.mean(dim=0, dtype=torch.float64)
    parts = torch.split(vectors, _AT_ONCE)
    if len(vectors) > vectors.shape[1]:
        products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in parts:
            centred = part - mean
            products += centred.T @ centred
        first, second, axes = _largest_two(products)
    else:  # the same eigenvalues, of a smaller matrix
        centred = vectors - mean
        products = centred @ centred.T
        first, second, basis = _largest_two(products)
        axes = torch.nn.functional.normalize(centred.T @ basis, dim=0, eps=1e-300)
    if second <= 1e-12 * first:  # on a line: the direction of a second axis would be rounding noise
        second = 0.0
        axes[:, 1] = 0
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    total = float(products.trace())
    positions = torch.cat([(part - mean) @ axes for part in parts])
    return positions, (first / total, second / total)


def _largest_two(matrix: Tensor) -> tuple[float, float, Tensor]:
    """Return the two largest eigenvalues of a symmetric matrix, and their eigenvectors in columns.

    Two eigenvectors of a large matrix are found by iteration, 20 times as fast as all of them.
    """
    if len(matrix) > _ALL_EIGENVECTORS:
        generator = torch.Generator().manual_seed(_SEED)
        start = torch.randn(len(matrix), _BLOCK, generator=generator, dtype=matrix.dtype)
        scale = float(matrix.trace())
        values, basis = torch.lobpcg(matrix / scale, X=start, tol=1e-9, niter=500)
        return float(values[0]) * scale, float(values[1]) * scale, basis[:, :2]
    values, basis = torch.linalg.eigh(matrix)
    return float(values[-1]), float(values[-2]), basis[:, -2:].flip(1)


def _umap(vectors: Tensor, start: Tensor) -> Tensor:
    """Return the positions of UMAP (McInnes et al. 2018), which starts from those of PCA.

    This start keeps more of the global structure than a random one (Kobak and Linderman 2021), and
    works for few images, where the default, a spectral one, fails.
    """
    from umap import UMAP

    start = (start / start.abs().max()).float()
    spans = start.amax(dim=0) - start.amin(dim=0)
    reducer = UMAP(
        n_neighbors=min(_NEIGHBOURS, len(vectors) - 1),
        # UMAP divides by the span of each axis.
        init=start.numpy() if bool((spans > 0).all()) else "random",
        random_state=_SEED,
        n_jobs=1,  # with several, a seed does not repeat the result
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = vectors / vectors.abs().max()  # so that no squared distance overflows
        return torch.from_numpy(reducer.fit_transform(scaled.numpy())).double()
