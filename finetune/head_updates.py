"""Optimizer steps of heads that stand side by side in one layer: torch's rules, with a learning
rate, a weight decay and a momentum for each head."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.config import OptimizerConfig, ScheduleConfig
from finetune.optim import build_optimizer
from finetune.schedules import build_schedule


@dataclass(frozen=True)
class HeadSettings:
    """How one head is trained; batches and schedule are common to all."""

    optimizer: OptimizerConfig
    epochs: int
    label_smoothing: float


def rows_of(heads: Tensor, num_classes: int) -> Tensor:
    """The outputs that belong to these heads, ``(k,)`` int64."""
    own = torch.arange(num_classes, device=heads.device)
    return (heads[:, None] * num_classes + own).flatten()


class Updates:
    """The steps of all heads of a layer.

    Args:
        layer: Of all heads, those of one optimizer side by side.
        settings: Of each head.
    """

    def __init__(
        self,
        layer: nn.Module,
        settings: Sequence[HeadSettings],
        *,
        schedule: ScheduleConfig,
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
        """Move every head by its gradient, which is used up."""
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            start = 0
            for rule in self._rules:
                stop = start + rule.num_rows
                rule.step(step, name, parameter[start:stop], parameter.grad[start:stop])
                start = stop

    def keep(self, chosen: Tensor) -> None:
        """Go on with these heads alone, in ascending order."""
        start = 0
        for rule in self._rules:
            stop = start + rule.count
            rule.keep(chosen[(chosen >= start) & (chosen < stop)] - start)
            start = stop
        self._rules = [rule for rule in self._rules if rule.count]


def _plain(optimizer: OptimizerConfig) -> OptimizerConfig:
    return optimizer.model_copy(update={"lr": 1.0, "weight_decay": 0.0})


@functools.lru_cache(maxsize=64)
def factors(
    schedule: ScheduleConfig, optimizer: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> Tensor:
    """The learning rate of each step, ``(steps,)`` float64, of an optimizer whose own is 1: from
    the very schedule that the loop would step."""
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
    """One optimizer's rule for heads that stand side by side.

    Options are read off the optimizers that the loop would have used.

    Args:
        heads: Their places in the layer, of ``total``.
        rates: Of each head, step by step.
    """

    options: tuple[str, ...]
    num_states: int

    def __init__(
        self,
        layer: nn.Module,
        heads: range,
        total: int,
        optimizers: Sequence[OptimizerConfig],
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
        """Outputs of all its heads."""
        return self.count * self._num_classes

    def _a_row_each(self, values: Tensor, like: Tensor) -> Tensor:
        """One value a head, ready to be multiplied with all weights of the head."""
        rows = values.repeat_interleave(self._num_classes, output_size=self.num_rows)
        return rows.reshape(-1, *[1] * (like.dim() - 1))

    def step(self, step: int, name: str, parameter: Tensor, gradient: Tensor) -> None:
        """Move the parameter, in place; the gradient is used up."""
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
        """The rule itself."""
        raise NotImplementedError

    def keep(self, chosen: Tensor) -> None:
        """Go on with these heads alone."""
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
    """Loshchilov and Hutter 2019, as torch computes it."""

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
