"""One mask for several networks that would draw the same one.

The folds of a cross-validation train by the same seeds, so that their dropouts draw the same masks,
step by step; and torch's CPU generator takes 10 ns a number, longer than all the rest of a head's
step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Masks:
    """The masks of one step, by the shape of the input."""

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
    """`nn.Dropout` on a CPU, with a generator of its own.

    Copies of it share each step's mask, and nothing else: each is in a mode of its own.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._masks = _Masks()

    def begin(self, seed: int) -> None:
        """A step, for which others seed torch's own generator."""
        self._masks.begin(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        """As `nn.Dropout` where nothing else is drawn in a step, to the bit."""
        return inputs * self._masks.of(inputs, self.p) if self.training else inputs


def share_dropout(network: nn.Module) -> bool:
    """Put it in the place of the one dropout that draws; whether nothing draws from torch's
    generator any more."""
    drawing = [
        (path, module)
        for path, module in network.named_modules()
        if module.training and isinstance(module, nn.Dropout) and module.p > 0
    ]
    if len(drawing) == 1:
        ((path, module),) = drawing
        network.set_submodule(path, SharedDropout(module.p))
    return len(drawing) <= 1
