"""Learning rate and weight decay of a head, found by cross-validation on its cached features.

Where a linear head is all that trains and its features are cached, several heads are trained for
little more than the cost of one. ``auto`` then stands for the rates of the best of them.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from finetune.core.reporter import Reporter
from finetune.features.source import CachedFeatures, FeatureBatches
from finetune.results.train import FoundRates
from finetune.training.prepare_stage import StageSetup
from finetune.tuning.cross_validation import CrossValidation
from finetune.tuning.search import folds_at_most, left_out_of_trials
from finetune.tuning.search_space import HEAD_RATES, own_settings
from finetune.tuning.stacked_heads import lone_head
from finetune.tuning.trials import ranked_trials

_MOST_FOLDS = 5
_SHORTEST_S, _SHARE = 2.0, 0.1
"""The search may take two seconds, or a tenth of the time of computing the features."""
_STEP_S, _HEAD_MACS_PER_S, _PREFIX_MACS_PER_S = 1.1e-3, 3e10, 1e11
"""Measured on two cores: seconds of a step without its products, and multiply-adds per second.

Constants instead of timings, so that the choice does not depend on what else the machine does.
"""


def find_rates(
    stage_setup: StageSetup,
    training: FeatureBatches,
    keys: Collection[str],
    reporter: Reporter,
) -> FoundRates | None:
    """Find the rates of a head by cross-validation on the training images.

    Args:
        training: Batches of the training images.
        keys: Keys of the section ``optimizer`` that are ``auto``.

    Returns:
        The best rates; None if ``lr`` is given, if anything but a linear head trains, if no
        features are cached or their views are random, or if training several heads would take too
        long.
    """
    config = stage_setup.config
    rates = HEAD_RATES.get(config.optimizer.name, ())
    if "weight_decay" not in keys:
        given = config.optimizer.weight_decay
        rates = tuple(dict.fromkeys((lr, given) for lr, _ in rates))
    if (
        "lr" not in keys
        or lone_head(stage_setup.engine.split.trainable_part) is None
        or not rates
        or not isinstance(training, CachedFeatures)
        or training.views.are_random  # the first view, which is judged, would be augmented too
        or left_out_of_trials(config, only_head=True)
    ):
        return None
    number = _affordable_folds(stage_setup, training, len(rates))
    folds = folds_at_most(_MOST_FOLDS, config, stage_setup.data)[:number] if number else ()
    if not folds:
        return None
    start = time.perf_counter()
    cv = CrossValidation.of(stage_setup, folds, training.part, kept=True)
    own = own_settings(config)
    settings = [replace(own, lr=lr, weight_decay=decay) for lr, decay in rates]
    best = ranked_trials(cv, settings, metric=config.train.monitor, reporter=reporter)[0]
    if best.loss is None:  # all diverged
        return None
    seconds = time.perf_counter() - start
    found = best.settings
    how = f"cross-validation on {len(folds)} folds" if len(folds) > 1 else "a held-out part"
    reporter.detail(
        f"optimizer.lr {found.lr:g}, optimizer.weight_decay {found.weight_decay:g}: the best of "
        f"{len(settings)} heads on the training images, by {how} ({seconds:.1f} s)"
    )
    return FoundRates(found.lr, found.weight_decay, len(settings), len(folds), seconds)


def _affordable_folds(stage_setup: StageSetup, training: CachedFeatures, heads: int) -> int:
    """Return the number of folds on which this many heads can be trained in time."""
    cost, config = stage_setup.plan.cost, stage_setup.config
    views = training.views.count or 1
    rows = len(training.images) * views
    budget = max(_SHORTEST_S, _SHARE * rows * cost.forward_frozen / _PREFIX_MACS_PER_S)
    steps = config.train.epochs * len(training) * (_MOST_FOLDS - 1) / _MOST_FOLDS
    # Forward pass, and the gradient of the weights.
    products = 2 * heads * config.data.batch_size * cost.forward_trainable / _HEAD_MACS_PER_S
    return min(int(budget / (steps * (_STEP_S + products))), _MOST_FOLDS)
