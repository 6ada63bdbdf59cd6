"""Validation of ``optimizer.options`` against the torch.optim class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch.optim
from torch import nn

from finetune.config.base import AUTO
from finetune.config.optimizer import NO_OPTIONS, OPTIMIZERS
from finetune.config.schema import OptimizerConfig
from finetune.core.errors import ConfigError, Problem
from finetune.core.text import did_you_mean


def check_optimizer(config: OptimizerConfig, trainable: Mapping[str, nn.Parameter]) -> None:
    """Check the optimizer section before training, so that the first step cannot fail on it.

    Args:
        trainable: Trainable parameters by name; they may be on the meta device.

    Raises:
        ConfigError: The class has no such option, rejects a value, or cannot optimize parameters
            of these shapes.
    """
    if config.name == AUTO:
        return
    _check_options(config)
    name = OPTIMIZERS[config.name].name
    others = {key: p for key, p in trainable.items() if p.dim() != 2}
    if name == "Muon" and others:
        key, parameter = next(iter(others.items()))
        raise ConfigError(
            f"Muon optimizes matrices only, but {len(others)} of the {len(trainable)} trainable "
            f"parameters are not matrices, such as {key} "
            f"({'x'.join(map(str, parameter.shape))})",
            kind="config.unsupported_optimizer",
            key="optimizer.name",
            to_do="use adamw",
        )


def _check_options(config: OptimizerConfig) -> None:
    if not config.options:
        return
    name = OPTIMIZERS[config.name].name
    taken = inspect.signature(optimizer_class(config)).parameters
    problems = []
    for key, value in config.options.items():
        if key not in taken:
            own = [one for one in taken if one not in NO_OPTIONS]
            problems.append(
                Problem(
                    "config.unknown_key",
                    f"{name} has no such argument",
                    f"{did_you_mean(key, own)} It has {', '.join(own)}".strip(),
                    key=f"optimizer.options.{key}",
                )
            )
            continue
        expected = _expected(value, taken[key].default, str(taken[key].annotation))
        if expected:
            problems.append(
                Problem(
                    "config.invalid_value",
                    f"must be {expected}, not {value!r}",
                    key=f"optimizer.options.{key}",
                )
            )
    if problems:
        raise ConfigError.of(problems, kind="config.several_problems")
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    numbers = {"lr": OPTIMIZERS[config.name].defaults["lr"], "weight_decay": 0.0}
    try:
        numbered = config.with_values(numbers)
        optimizer_class(config)([parameter], **arguments_of(numbered)).step()
    except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ConfigError(
            f"{name} rejects them: {str(error).splitlines()[0]}",
            kind="config.invalid_value",
            key="optimizer.options",
        ) from error


def _expected(value: Any, default: Any, annotation: str = "") -> str:
    """Describe the type expected from the default of an option; empty if the value has it."""
    if isinstance(default, bool) or (default is None and "bool" in annotation):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        whole = annotation in ("int", "<class 'int'>")
        kinds = int if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        return "" if fits else f"a {'whole ' if whole else ''}number"
    if isinstance(default, tuple):
        fits = isinstance(value, list) and len(value) == len(default)
        if fits and not any(map(_expected, value, default)):
            return ""
        return f"a list of {len(default)} numbers"
    return "" if value is None or isinstance(value, str | int | float) else "text or a number"


def optimizer_class(config: OptimizerConfig) -> Any:
    return getattr(torch.optim, OPTIMIZERS[config.name].name)


def arguments_of(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of the class; parameter groups override ``lr`` and ``weight_decay``."""
    given = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    taken = inspect.signature(optimizer_class(config)).parameters
    own = {key: value for key, value in given.items() if key in taken and value is not None}
    options = config.options or {}
    return own | {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
