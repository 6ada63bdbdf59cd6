"""Learning rate schedules from ``torch.optim.lr_scheduler``."""

from __future__ import annotations

import warnings
from typing import SupportsFloat

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from finetune.config.resolved import ResolvedSchedule

_WARMUP_START = 0.01


def build_schedule(
    optimizer: Optimizer, config: ResolvedSchedule, *, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Build a schedule that is stepped once per optimizer step, and by `end_epoch` per epoch.

    All schedules but plateau depend on the number of steps alone. The ratios of the parameter
    groups' learning rates stay constant.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.name == "plateau":
        return Plateau(optimizer, config, warmup_steps=warmup)
    rest = max(epochs * steps_per_epoch - warmup, 1)
    main = _main_schedule(optimizer, config, steps=rest, steps_per_epoch=steps_per_epoch)
    if not warmup:
        return main
    rise = LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=warmup)
    with warnings.catch_warnings():  # SequentialLR steps its schedulers in its constructor
        warnings.simplefilter("ignore")
        return SequentialLR(optimizer, [rise, main], milestones=[warmup])


def end_epoch(schedule: LRScheduler, figure: float) -> None:
    """Pass an epoch's metric (higher is better) to a plateau schedule."""
    if isinstance(schedule, Plateau):
        schedule.step(figure)


def _main_schedule(
    optimizer: Optimizer, config: ResolvedSchedule, *, steps: int, steps_per_epoch: int
) -> LRScheduler:
    if config.name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if config.name == "step":
        assert config.step_epochs is not None
        assert config.gamma is not None
        return StepLR(optimizer, config.step_epochs * steps_per_epoch, gamma=config.gamma)
    if config.name == "one_cycle":
        assert config.rise is not None
        # torch divides by zero if the rise lasts one step or less.
        total = max(steps, 4)
        rise = config.rise if config.rise * total > 1 else 2 / total
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            pct_start=rise,
            cycle_momentum=False,  # keep the config's momentum
        )
    return ConstantLR(optimizer, factor=1.0, total_iters=1)


class Plateau(ReduceLROnPlateau):
    """Schedule that warms up and then reduces the learning rates when the metric plateaus.

    ``step()`` counts an optimizer step, ``step(figure)`` an epoch; the metric of an epoch with
    warm-up steps is ignored.
    """

    def __init__(
        self, optimizer: Optimizer, config: ResolvedSchedule, *, warmup_steps: int
    ) -> None:
        assert config.gamma is not None
        assert config.patience is not None
        self.warmup: LinearLR | None = None
        self.warmup_left = warmup_steps
        self.rose = False
        if warmup_steps:
            self.warmup = LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=warmup_steps)
        super().__init__(
            optimizer,
            mode="max",
            factor=config.gamma,
            # torch counts the epochs to tolerate, and reduces after one more.
            patience=config.patience - 1,
            threshold=0.0,
            threshold_mode="abs",
            eps=0.0,
        )

    def step(  # type: ignore[override]
        self, metrics: SupportsFloat | None = None, epoch: int | None = None
    ) -> None:
        """Count an optimizer step; with a metric (higher is better), count an epoch."""
        if metrics is None:
            if self.warmup is not None and self.warmup_left:
                self.warmup.step()
                self.warmup_left -= 1
                self.rose = True
        elif self.rose:
            self.rose = False
        else:
            super().step(metrics, epoch)
