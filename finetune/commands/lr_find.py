"""``finetune lr-find``: learning-rate range test."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from finetune.config.schema import Config
from finetune.core.errors import ConfigError, ResultError
from finetune.core.memory import steps_of
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.report.tuning_plots import RATES_BY, check_picture, draw_lr_range
from finetune.results.tuning import LrRange, RangePoint
from finetune.training.prepare_stage import feature_batches_of, prepare_single_stage
from finetune.tuning.lr_range_test import RULE, exponential_rates, lr_curve, range_test

_FEWEST = 5


def lr_find(
    config: Config,
    *,
    plot: Path | None = None,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    reporter: Reporter | None = None,
) -> LrRange:
    """Run a learning-rate range test of the config; no weights are saved.

    Args:
        plot: Output PNG file of the curve.
        lowest: Learning rate of the first step.
        highest: Learning rate of the last step.
        steps: Number of optimizer steps; the learning rate grows by a constant factor per step.

    Raises:
        ConfigError: the range is empty, or ``plot`` is not a PNG file name.
        ResultError: the loss was not finite from the start.
    """
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    if lowest >= highest:
        raise ConfigError(
            f"must be below --max-lr, {highest:g}, not {lowest:g}",
            kind="config.invalid_value",
            key="--min-lr",
        )
    if plot is not None:
        check_picture(plot, RATES_BY)
    rates = exponential_rates(lowest, highest, steps)
    found = dropping_unreadable(
        lambda _: _test(config, rates, reporter),
        on_unreadable=config.data.on_unreadable,
        reporter=reporter,
    )
    if plot is not None:
        found = replace(found, plot=str(plot))
        draw_lr_range(found, plot)
    return replace(found, elapsed_s=time.perf_counter() - start)


def _test(config: Config, rates: list[float], reporter: Reporter) -> LrRange:
    stage_setup = prepare_single_stage(config, reporter, what="lr-find")
    config, train = stage_setup.config, stage_setup.data.train
    source = feature_batches_of(stage_setup, reporter, training=True)
    if source.counts is not None:
        reporter.say(source.counts.in_words)
    with steps_of(stage_setup.plan.cost.forward_trainable * config.data.batch_size):
        tested = range_test(stage_setup, source, rates, reporter)
    losses = tested.losses
    if len(losses) < _FEWEST:
        raise ResultError(
            f"the loss is not a finite number after {len(losses)} steps, at a learning rate of "
            f"{tested.ended_at:.2g}",
            kind="result.not_finite",
            source="lr-find",
            to_do="start lower with --min-lr",
        )
    curve = lr_curve(rates[: len(losses)], losses)
    trainable = sum(p.numel() for p in stage_setup.model.parameters() if p.requires_grad)
    return LrRange(
        model=stage_setup.plan.spec.name,
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
        features=source.counts,
        plot=None,
    )
