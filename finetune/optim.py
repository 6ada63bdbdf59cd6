"""Optimizer and schedule from torch, over trainable parameters only."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from finetune.config import OptimizerConfig, ScheduleConfig

STATE_TENSORS = {"sgd": 1, "adamw": 2}
"""Tensors of a parameter's size that each optimizer keeps (momentum; first and second moment)."""

_WARMUP_START = 0.01


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """An optimizer that has never seen a frozen parameter: weight decay and momentum move those
    that it holds, gradient or not."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    # One kernel for all parameters; on a CPU the loop over them was the faster.
    fused = True if trainable and all(p.is_cuda for p in trainable) else None
    if config.name == "adamw":
        return AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return SGD(
        trainable,
        lr=config.lr,
        momentum=config.momentum or 0.0,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def build_schedule(
    optimizer: Optimizer, config: ScheduleConfig, *, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """A schedule that is advanced once per optimizer step."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rest = epochs * steps_per_epoch - warmup
    main = _main_schedule(optimizer, config, steps=max(rest, 1), steps_per_epoch=steps_per_epoch)
    if not warmup:
        return main
    rise = LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=warmup)
    with warnings.catch_warnings():  # SequentialLR steps its parts while it is built
        warnings.simplefilter("ignore")
        return SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _main_schedule(
    optimizer: Optimizer, config: ScheduleConfig, *, steps: int, steps_per_epoch: int
) -> LRScheduler:
    if config.name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if config.name == "step":
        assert config.step_epochs is not None
        assert config.gamma is not None
        return StepLR(optimizer, config.step_epochs * steps_per_epoch, gamma=config.gamma)
    return ConstantLR(optimizer, factor=1.0, total_iters=1)
