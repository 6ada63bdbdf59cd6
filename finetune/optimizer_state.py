"""What an optimizer remembers of each parameter, by the parameter's name.

Learning rates are no part of it: a schedule finds them again from the number of steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Number = float | int | bool


def memory_of(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """Tensors and numbers, as ``NAME/KEY``; the tensors go on changing."""
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


def remember(
    optimizer: Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Number],
) -> None:
    """Give a new optimizer what `memory_of` found.

    Raises:
        KeyError: it is of a parameter that this optimizer does not hold.
    """
    by_name = dict(named)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    position = {id(parameter): at for at, parameter in enumerate(held)}
    state: dict[int, dict[str, Tensor | Number]] = {}
    for label, value in {**tensors, **numbers}.items():
        name, _, key = label.rpartition("/")
        parameter = by_name[name]
        if isinstance(value, Tensor):
            # A copy: a count of steps would be shared otherwise, and is added to in place. Laid out
            # as the parameter, which is what the fast kernels ask for.
            alike = value.shape == parameter.shape
            new = torch.empty_like(parameter if alike else value, dtype=value.dtype)
            value = new.copy_(value)
        state.setdefault(position[id(parameter)], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def advance(schedule: LRScheduler, steps: int) -> None:
    """Bring a new schedule to where it is after so many steps, by the same sums: its rates depend
    on those before in the last bits."""
    with warnings.catch_warnings():  # torch misses the optimizer's own steps
        warnings.simplefilter("ignore")
        for _ in range(steps):
            schedule.step()
