"""Optimizers for stacked heads: torch's update rules with separate hyperparameters for each head.

Learning rate, weight decay and momentum may differ between heads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.config.resolved import ResolvedOptimizer, ResolvedSchedule
from finetune.training.lr_schedulers import build_schedule
from finetune.training.optimizers import build_optimizer


@dataclass(frozen=True)
class HeadSettings:
    """Training settings of one head; batches and schedule are shared by all heads."""

    optimizer: ResolvedOptimizer
    epochs: int
    label_smoothing: float


def rows_of(heads: Tensor, num_classes: int) -> Tensor:
    """Return the indices of the outputs of the heads with indices ``(k,)`` int64."""
    own = torch.arange(num_classes, device=heads.device)
    return (heads[:, None] * num_classes + own).flatten()


class StackedOptimizer:
    """Optimizer of all stacked heads of a layer.

    Args:
        layer: Layer of all heads, in which the heads of one optimizer are adjacent.
        settings: Settings of each head.
    """

    def __init__(
        self,
        layer: nn.Module,
        settings: Sequence[HeadSettings],
        *,
        schedule: ResolvedSchedule,
        steps_per_epoch: int,
    ) -> None:
        self._rules: list[_Rule] = []
        start = 0
        for name, some in itertools.groupby(settings, key=lambda one: one.optimizer.name):
            own = list(some)
            rates = [
                factors(schedule, _plain(one.optimizer), one.epochs, steps_per_epoch)
                * one.optimizer.lr
                for one in own
            ]
            kind = {"sgd": _Sgd, "adamw": _AdamW}[name]
            heads = range(start, start + len(own))
            options = [one.optimizer for one in own]
            self._rules.append(kind(layer, heads, len(settings), options, rates))
            start += len(own)

    @torch.no_grad()
    def step(self, layer: nn.Module, step: int) -> None:
        """Update every head; the gradients are overwritten."""
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            start = 0
            for rule in self._rules:
                stop = start + rule.num_rows
                rule.step(step, name, parameter[start:stop], parameter.grad[start:stop])
                start = stop

    def keep(self, chosen: Tensor) -> None:
        """Keep only the heads with these indices, in ascending order."""
        start = 0
        for rule in self._rules:
            stop = start + rule.count
            rule.keep(chosen[(chosen >= start) & (chosen < stop)] - start)
            start = stop
        self._rules = [rule for rule in self._rules if rule.count]


def _plain(optimizer: ResolvedOptimizer) -> ResolvedOptimizer:
    return optimizer.with_values({"lr": 1.0, "weight_decay": 0.0})


@functools.lru_cache(maxsize=64)
def factors(
    schedule: ResolvedSchedule, optimizer: ResolvedOptimizer, epochs: int, steps_per_epoch: int
) -> Tensor:
    """Return the learning rate of each step for a base of 1, ``(steps,)`` float64.

    The factors are read from the same schedule that `train_epochs` would step.
    """
    parameter = nn.Parameter(torch.zeros(()))
    alone = build_optimizer([("alone", parameter)], optimizer)
    plan = build_schedule(alone, schedule, epochs=epochs, steps_per_epoch=steps_per_epoch)
    found = []
    for _ in range(epochs * steps_per_epoch):
        found.append(alone.param_groups[0]["lr"])
        alone.step()
        plan.step()
    return torch.tensor(found, dtype=torch.float64)


class _Rule:
    """Update rule of one optimizer class for adjacent heads.

    Options are read from the optimizers that `train_epochs` would use.

    Args:
        heads: Indices of the heads in the layer.
        total: Number of all heads in the layer.
        rates: Learning rates of each head, by step.
    """

    options: tuple[str, ...]
    num_states: int

    def __init__(
        self,
        layer: nn.Module,
        heads: range,
        total: int,
        optimizers: Sequence[ResolvedOptimizer],
        rates: Sequence[Tensor],
    ) -> None:
        self.count = len(heads)
        self._num_classes = len(next(layer.parameters())) // total
        self._rates = nn.utils.rnn.pad_sequence(list(rates)).float()  # (steps, count)
        self._options: dict[str, dict[str, Tensor]] = {}
        self._states: dict[str, list[Tensor]] = {}
        for name, parameter in layer.named_parameters():
            start, stop = heads.start * self._num_classes, heads.stop * self._num_classes
            like = parameter.detach()[start:stop]
            self._rates = self._rates.to(like.device)
            groups = [
                build_optimizer([(name, parameter)], one).param_groups[0] for one in optimizers
            ]
            self.common: dict[str, Any] = groups[0]
            self._options[name] = {
                key: self._a_row_each(torch.tensor([group[key] for group in groups]).to(like), like)
                for key in self.options
            }
            self._states[name] = [torch.zeros_like(like) for _ in range(self.num_states)]

    @property
    def num_rows(self) -> int:
        """Number of outputs of all its heads."""
        return self.count * self._num_classes

    def _a_row_each(self, values: Tensor, like: Tensor) -> Tensor:
        """Expand one value per head to one per output, in a shape that broadcasts to ``like``."""
        rows = values.repeat_interleave(self._num_classes, output_size=self.num_rows)
        return rows.reshape(-1, *[1] * (like.dim() - 1))

    def step(self, step: int, name: str, parameter: Tensor, gradient: Tensor) -> None:
        """Update the parameter in place; the gradient is overwritten."""
        lr = self._a_row_each(self._rates[step], parameter)
        self.move(step, lr, parameter, gradient, self._options[name], self._states[name])

    def move(
        self,
        step: int,
        lr: Tensor,
        parameter: Tensor,
        gradient: Tensor,
        options: dict[str, Tensor],
        states: list[Tensor],
    ) -> None:
        """Apply the update rule, in place."""
        raise NotImplementedError

    def keep(self, chosen: Tensor) -> None:
        """Keep only the heads with these indices."""
        rows = rows_of(chosen, self._num_classes)
        self.count = len(chosen)
        self._rates = self._rates[:, chosen]
        for name, states in self._states.items():
            self._states[name] = [state[rows] for state in states]
            self._options[name] = {key: of[rows] for key, of in self._options[name].items()}


class _Sgd(_Rule):
    options = ("weight_decay", "momentum")
    num_states = 1

    def move(
        self,
        step: int,  # noqa: ARG002
        lr: Tensor,
        parameter: Tensor,
        gradient: Tensor,
        options: dict[str, Tensor],
        states: list[Tensor],
    ) -> None:
        (velocity,) = states
        gradient.addcmul_(parameter, options["weight_decay"])
        velocity.mul_(options["momentum"]).add_(gradient)
        parameter.addcmul_(velocity, lr, value=-1)


class _AdamW(_Rule):
    """AdamW (Loshchilov and Hutter 2019), as computed by torch."""

    options = ("weight_decay",)
    num_states = 2

    def move(
        self,
        step: int,
        lr: Tensor,
        parameter: Tensor,
        gradient: Tensor,
        options: dict[str, Tensor],
        states: list[Tensor],
    ) -> None:
        mean, square = states
        beta1, beta2 = self.common["betas"]
        parameter.mul_(1 - lr * options["weight_decay"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2 ** (step + 1))).sqrt_().add_(self.common["eps"])
        parameter.addcmul_(mean / scale, lr, value=-1 / (1 - beta1 ** (step + 1)))
