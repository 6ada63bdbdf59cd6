"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Exponential moving average of tensors over the steps of a training.

    After step t, the weight of step i is proportional to ``decay ** (t - i)``; the weights sum to
    1. This is torch's moving average with Adam's bias correction (Kingma and Ba 2015, section 3),
    so that the untrained head that a short run starts from is not part of it. Counters are copied,
    not averaged.

    Args:
        tensors: Tensors that change in training, by name; they are read at each `update`.
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
        """Update the average with the tensors' values after a step."""
        self.steps += 1
        kept = 1 - (1 - self.decay) / (1 - self.decay**self.steps)
        get_ema_multi_avg_fn(kept)(*self._floating, None)  # type: ignore[no-untyped-call]
        for averaged, current in self._counters:
            averaged.copy_(current)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load an average over ``steps`` steps."""
        self.steps = steps
        for name, averaged in self.tensors.items():
            averaged.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Return a context manager in which the tensors have their averages as values."""
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
