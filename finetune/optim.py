"""An optimizer from ``torch.optim``, over trainable parameters only."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch.optim
from torch import nn
from torch.optim import Optimizer

from finetune.config import OptimizerConfig
from finetune.config_optimizer import NO_OPTIONS, OPTIMIZERS
from finetune.config_section import AUTO
from finetune.errors import ConfigError, did_you_mean
from finetune.param_groups import plan_groups

_FUSED = frozenset({"sgd", "adam", "adamw"})


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    *,
    depths: Mapping[str, int] | None = None,
) -> Optimizer:
    """An optimizer that has never seen a frozen parameter: weight decay and momentum move those
    that it holds, gradient or not.

    Args:
        parameters: With their names, by which some are spared weight decay: those in the whole
            model where the config has groups or a ``layer_decay``.
        config: With no ``auto`` left.
        depths: From `finetune.layers`, for ``layer_decay``.
    """
    named = {name: parameter for name, parameter in parameters if parameter.requires_grad}
    arguments = _arguments(config)
    # One kernel for all parameters, where the config asks for no other way; on a CPU the loop over
    # them was the faster.
    on_cuda = all(parameter.is_cuda for parameter in named.values())
    if config.name in _FUSED and on_cuda and "foreach" not in arguments:
        arguments = {"fused": True} | arguments
    groups = plan_groups(config, {name: p.shape for name, p in named.items()}, depths=depths)
    own = {"lr", "weight_decay"} & arguments.keys()
    return cast(
        Optimizer,
        _class_of(config)(
            [
                {"params": [(name, named[name]) for name in group.names]}
                | {key: getattr(group, key) for key in own}
                for group in groups
            ],
            **arguments,
        ),
    )


def check_optimizer(config: OptimizerConfig, trainable: Mapping[str, nn.Parameter]) -> None:
    """Refuse before training what the class would refuse at its first step.

    Args:
        trainable: Shapes are enough.

    Raises:
        ConfigError: an option that the class does not take, or a value that it does not; or
            parameters that it cannot move.
    """
    if config.name == AUTO:
        return
    _check_options(config)
    name = OPTIMIZERS[config.name].name
    others = {key: p for key, p in trainable.items() if p.dim() != 2}
    if name == "Muon" and others:
        key, parameter = next(iter(others.items()))
        raise ConfigError(
            f"optimizer.name: Muon moves matrices alone, and {len(others)} of the "
            f"{len(trainable)} trainable parameters are none, {key} "
            f"({'x'.join(map(str, parameter.shape))}) among them; take adamw"
        )


def _check_options(config: OptimizerConfig) -> None:
    if not config.options:
        return
    name = OPTIMIZERS[config.name].name
    taken = inspect.signature(_class_of(config)).parameters
    problems = []
    for key, value in config.options.items():
        if key not in taken:
            own = [one for one in taken if one not in NO_OPTIONS]
            problems.append(
                f"optimizer.options.{key}: {name} has no such argument."
                f"{did_you_mean(key, own)} It has {', '.join(own)}."
            )
            continue
        expected = _expected(value, taken[key].default, str(taken[key].annotation))
        if expected:
            problems.append(f"optimizer.options.{key}: must be {expected}, not {value!r}")
    if problems:
        raise ConfigError("\n".join(problems))
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    numbers = {"lr": OPTIMIZERS[config.name].defaults["lr"], "weight_decay": 0.0}
    try:
        _class_of(config)([parameter], **_arguments(config.model_copy(update=numbers))).step()
    except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ConfigError(
            f"optimizer.options: {name} refuses them: {str(error).splitlines()[0]}"
        ) from error


def _expected(value: Any, default: Any, annotation: str = "") -> str:
    """What a value should be, in words, to stand for a default; nothing where it may."""
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
    return "" if value is None or isinstance(value, str | int | float) else "a word or a number"


def _class_of(config: OptimizerConfig) -> Any:
    return getattr(torch.optim, OPTIMIZERS[config.name].name)


def _arguments(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of the class; groups override the first two."""
    given = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    taken = inspect.signature(_class_of(config)).parameters
    own = {key: value for key, value in given.items() if key in taken and value is not None}
    options = config.options or {}
    return own | {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
