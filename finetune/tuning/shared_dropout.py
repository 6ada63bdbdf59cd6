"""Dropout whose masks are shared by networks that would draw the same ones.

The folds of a cross-validation use the same seeds, so their dropouts draw the same masks in each
step. torch's CPU generator takes 10 ns per number, longer than the rest of a head's step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Masks:
    """Masks of one step, by input shape."""

    def __init__(self) -> None:
        self._generator = torch.Generator()
        self._seed: int | None = None
        self._drawn: dict[torch.Size, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Masks:
        return self

    def begin(self, seed: int) -> None:
        if seed != self._seed:
            self._seed = seed
            self._drawn.clear()

    def of(self, inputs: Tensor, p: float) -> Tensor:
        assert self._seed is not None
        mask = self._drawn.get(inputs.shape)
        if mask is None:
            draws = self._generator.manual_seed(self._seed)
            mask = torch.empty_like(inputs).bernoulli_(1 - p, generator=draws)
            self._drawn[inputs.shape] = mask.div_(1 - p)
        return mask


class SharedDropout(nn.Module):
    """`nn.Dropout` on a CPU, with its own generator.

    Copies share each step's mask and nothing else; each has its own train or eval mode.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._masks = _Masks()

    def begin(self, seed: int) -> None:
        """Begin a step; replaces seeding torch's generator."""
        self._masks.begin(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the shared mask; equals `nn.Dropout` if nothing else draws random numbers."""
        return inputs * self._masks.of(inputs, self.p) if self.training else inputs


def share_dropout(network: nn.Module) -> bool:
    """Replace the network's only active dropout by a `SharedDropout`.

    Returns:
        Whether no module draws from torch's generator any more; False if there are several active
        dropouts, which are not replaced.
    """
    drawing = [
        (path, module)
        for path, module in network.named_modules()
        if module.training and isinstance(module, nn.Dropout) and module.p > 0
    ]
    if len(drawing) == 1:
        ((path, module),) = drawing
        network.set_submodule(path, SharedDropout(module.p))
    return len(drawing) <= 1
