"""One mask for several networks that would draw the same one.

The folds of a cross-validation train by the same seeds, so that their dropouts draw the same masks,
step by step; and torch's CPU generator takes 10 ns a number, longer than all the rest of a head's
step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SharedDropout(nn.Module):
    """`nn.Dropout` on a CPU; copies of it that meet the same seed and shape share a mask.

    Of use where the generator is seeded before each step, and this is all that is drawn in it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._seed: int | None = None
        self._masks: dict[torch.Size, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedDropout:
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """As `nn.Dropout`, to the bit."""
        if not self.training:
            return inputs
        seed = torch.default_generator.initial_seed()
        if seed != self._seed:
            self._seed = seed
            self._masks.clear()
        mask = self._masks.get(inputs.shape)
        if mask is None:
            mask = torch.empty_like(inputs).bernoulli_(1 - self.p).div_(1 - self.p)
            self._masks[inputs.shape] = mask
        return inputs * mask


def share_dropout(network: nn.Module) -> None:
    """Put it in the place of a dropout, where there is one alone that draws."""
    drawing = [
        (path, module)
        for path, module in network.named_modules()
        if module.training and isinstance(module, nn.Dropout) and module.p > 0
    ]
    if len(drawing) == 1:
        ((path, module),) = drawing
        network.set_submodule(path, SharedDropout(module.p))
