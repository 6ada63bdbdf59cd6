"""Optimizers from ``torch.optim`` over the trainable parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn
from torch.optim import Optimizer

from finetune.config.resolved import ResolvedOptimizer
from finetune.freezing.optimizer_options import arguments_of, optimizer_class
from finetune.freezing.param_groups import plan_groups

_FUSED = frozenset({"sgd", "adam", "adamw"})


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: ResolvedOptimizer,
    *,
    depths: Mapping[str, int] | None = None,
) -> Optimizer:
    """Build an optimizer over the trainable parameters only.

    Frozen parameters must not be passed to an optimizer, because weight decay and momentum change
    parameters even without a gradient.

    Args:
        parameters: Parameters with their names, which select those without weight decay; the
            names must be those in the whole model if the config has groups or a ``layer_decay``.
        depths: Depths from `finetune.models.layer_depths`, for ``layer_decay``.
    """
    named = {name: parameter for name, parameter in parameters if parameter.requires_grad}
    arguments = arguments_of(config)
    # Use the fused kernel on CUDA unless the config says otherwise; on a CPU the loop over the
    # parameters was faster.
    on_cuda = all(parameter.is_cuda for parameter in named.values())
    if config.name in _FUSED and on_cuda and "foreach" not in arguments:
        arguments = {"fused": True} | arguments
    groups = plan_groups(config, {name: p.shape for name, p in named.items()}, depths=depths)
    own = {"lr", "weight_decay"} & arguments.keys()
    return cast(
        Optimizer,
        optimizer_class(config)(
            [
                {"params": [(name, named[name]) for name in group.names]}
                | {key: getattr(group, key) for key in own}
                for group in groups
            ],
            **arguments,
        ),
    )
