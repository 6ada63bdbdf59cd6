"""``finetune lr-find``: one short run at ever higher learning rates, and what it suggests."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from finetune.commands.preparation import prepare_alone, source_of
from finetune.config import Config
from finetune.data.balance import class_weights
from finetune.data.quick_check import dropping_unreadable
from finetune.errors import ConfigError, ResultError
from finetune.lr_curve import RULE, exponential_rates, lr_curve
from finetune.progress import Progress, Silent
from finetune.range_test import range_test
from finetune.report.search_plots import check_picture, draw_lr_range
from finetune.runtime import steps_of
from finetune.tune_results import LrRange, RangePoint

_FEWEST = 5


def lr_find(
    config: Config,
    *,
    plot: Path | None = None,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    progress: Progress | None = None,
) -> LrRange:
    """Test learning rates on what the config trains; nothing of it is kept.

    Args:
        plot: A PNG of the curve.
        lowest, highest: The range.
        steps: Of the optimizer; the rate grows by the same factor after each.

    Raises:
        ConfigError: the range is empty, or the picture's name is no PNG's.
        ResultError: the loss was no finite number from the start.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    if lowest >= highest:
        raise ConfigError(f"--min-lr: {lowest:g} is not below --max-lr, {highest:g}")
    if plot is not None:
        check_picture(plot)
    rates = exponential_rates(lowest, highest, steps)
    found = dropping_unreadable(
        lambda: _test(config, rates, progress),
        on_unreadable=config.data.on_unreadable,
        progress=progress,
    )
    if plot is not None:
        found = replace(found, plot=str(plot))
        draw_lr_range(found, plot)
    return replace(found, elapsed_s=time.perf_counter() - start)


def _test(config: Config, rates: list[float], progress: Progress) -> LrRange:
    prepared = prepare_alone(config, progress, what="lr-find")
    config, train = prepared.config, prepared.data.train
    source = source_of(prepared, progress, training=True)
    live = prepared.engine.live
    with steps_of(prepared.plan.cost.forward_live * config.data.batch_size):
        tested = range_test(
            live,
            source,
            rates,
            config=config,
            optimizer=prepared.optimizer_of(config.optimizer),
            set_mode=prepared.set_mode,
            num_classes=prepared.plan.num_classes,
            class_weights=class_weights(train.counts())
            if config.data.balance == "weights"
            else None,
            aux_weight=prepared.plan.spec.family.aux_weight,
            progress=progress,
        )
    losses = tested.losses
    if len(losses) < _FEWEST:
        raise ResultError(
            f"lr-find: the loss was no finite number after {len(losses)} steps, at lr "
            f"{tested.ended_at:.2g}; begin lower with --min-lr"
        )
    curve = lr_curve(rates[: len(losses)], losses)
    trainable = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
    return LrRange(
        model=prepared.plan.spec.name,
        optimizer=config.optimizer.name,
        batch_size=config.data.batch_size,
        num_train=len(train),
        trainable_parameters=trainable,
        points=tuple(map(RangePoint, rates, losses, curve.smoothed)),
        lr=curve.steepest,
        rule=RULE,
        lowest=curve.lowest,
        diverged_at=tested.ended_at,
        configured_lr=config.optimizer.lr,
        elapsed_s=0.0,
        plot=None,
    )
