"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The mean of tensors over the steps of a training, where later ones weigh more.

    After step t those of step i weigh as ``decay ** (t - i)``, all together one. That is torch's
    moving average with Adam's correction of its beginning (Kingma and Ba 2015, section 3), so that
    the untrained head that a short run starts from is no part of it. Counters are not averaged.

    Args:
        tensors: What changes in training, by name; they are read at each `update`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._current = {name: tensor.detach() for name, tensor in tensors.items()}
        self.tensors = {name: tensor.clone() for name, tensor in self._current.items()}
        floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        self._floating = (
            [self.tensors[name] for name in floating],
            [self._current[name] for name in floating],
        )
        self._counters = [
            (self.tensors[name], self._current[name])
            for name in self._current.keys() - set(floating)
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the tensors as they are after a step."""
        self.steps += 1
        kept = 1 - (1 - self.decay) / (1 - self.decay**self.steps)
        get_ema_multi_avg_fn(kept)(*self._floating, None)  # type: ignore[no-untyped-call]
        for averaged, current in self._counters:
            averaged.copy_(current)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go on from an average of so many steps."""
        self.steps = steps
        for name, averaged in self.tensors.items():
            averaged.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in place of the tensors themselves, which come back afterwards."""
        before = {name: tensor.clone() for name, tensor in self._current.items()}
        self._copy(self.tensors)
        try:
            yield
        finally:
            self._copy(before)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, current in self._current.items():
            current.copy_(tensors[name])
