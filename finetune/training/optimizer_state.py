"""Optimizer state by parameter name.

Learning rates are not part of it: a schedule recomputes them from the number of steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.config.optimizer import KEEPING

Number = float | int | bool


def optimizer_tensors(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """Return the state's tensors (not copied) and numbers, with keys ``NAME/KEY``."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}
    for name, parameter in named:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            elif value is not None:
                assert isinstance(value, Number), f"{key} of {type(optimizer).__name__}"
                numbers[f"{name}/{key}"] = value
    return tensors, numbers


def load_optimizer_tensors(
    optimizer: Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Number],
) -> None:
    """Load the result of `optimizer_tensors` into a new optimizer.

    Raises:
        KeyError: the state contains a parameter that this optimizer does not have.
    """
    by_name = dict(named)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    position = {id(parameter): at for at, parameter in enumerate(held)}
    state: dict[int, dict[str, Tensor | Number]] = {}
    for label, value in {**tensors, **numbers}.items():
        name, _, key = label.rpartition("/")
        parameter = by_name[name]
        if isinstance(value, Tensor):
            # Copy, because step counts are updated in place and would be shared otherwise. The
            # parameter's memory format is the one that the fast kernels need.
            alike = value.shape == parameter.shape
            new = torch.empty_like(parameter if alike else value, dtype=value.dtype)
            value = new.copy_(value)
        state.setdefault(position[id(parameter)], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def advance(schedule: LRScheduler, steps: int) -> None:
    """Advance a new schedule by a number of steps, one at a time.

    Each learning rate is computed from the previous one, so only this reproduces the last bits.
    """
    with warnings.catch_warnings():  # torch warns that the optimizer takes no steps
        warnings.simplefilter("ignore")
        for _ in range(steps):
            schedule.step()


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer at the end of a stage.

    Attributes:
        kind: Class of the optimizer.
        keeps: Arguments that determine which tensors the optimizer keeps per parameter.
        tensors, numbers: Results of `optimizer_tensors`.
    """

    kind: type[Optimizer]
    keeps: dict[str, bool]
    tensors: dict[str, Tensor]
    numbers: dict[str, Number]

    @classmethod
    def of(cls, optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> OptimizerState:
        """Return the momentum, moments and step counts of an optimizer, by parameter name."""
        return cls(type(optimizer), _keeps(optimizer), *optimizer_tensors(optimizer, named))

    def hand_over(
        self,
        optimizer: Optimizer,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        plain: Collection[str],
    ) -> int:
        """Load the state of the parameters that a new optimizer also updates.

        Args:
            plain: Parameter names of the network without adapters, whose state is never carried
                over.

        Returns:
            Number of parameters whose state was carried over; 0 if the two optimizers differ in
            class or in the tensors that they keep.
        """
        if type(optimizer) is not self.kind or _keeps(optimizer) != self.keeps:
            return 0
        named = list(named)
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        kept = {name for name, p in named if id(p) in moved and name in plain}
        tensors = {label: value for label, value in self.tensors.items() if _name(label) in kept}
        numbers = {label: value for label, value in self.numbers.items() if _name(label) in kept}
        load_optimizer_tensors(optimizer, named, tensors, numbers)
        return len({_name(label) for label in [*tensors, *numbers]})


def _name(label: str) -> str:
    return label.rpartition("/")[0]


def _keeps(optimizer: Optimizer) -> dict[str, bool]:
    # Only these keys, because other arguments do not affect the state, and loading a state adds
    # arguments to the defaults of some classes (torch.optim.Optimizer.__setstate__).
    return {key: bool(optimizer.defaults.get(key)) for key in ("momentum", *KEEPING)}
