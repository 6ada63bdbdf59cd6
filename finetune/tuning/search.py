"""Hyperparameter search of ``finetune tune`` for one backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from finetune.config.base import AUTO
from finetune.config.resolved import PlannedConfig, ResolvedConfig
from finetune.config.schema import Config
from finetune.core.errors import ConfigError, DataError, ModelError
from finetune.core.reporter import Reporter
from finetune.data.checks.preflight import known_contents
from finetune.data.images import TrainVal
from finetune.data.loading.sampler import batch_sizes
from finetune.data.splits.folds import Fold, groups_of_copies, make_folds
from finetune.data.splits.holdout import keys_of
from finetune.features.source import CachedFeatures, FeatureBatches
from finetune.freezing.graph_split import split_model
from finetune.freezing.plan import Plan
from finetune.models.build import check_input_size
from finetune.results.features import FeatureCounts, total
from finetune.results.tuning import LogisticBaseline, Settings, Trial, in_order
from finetune.training.prepare_stage import (
    StageSetup,
    feature_batches_of,
    plain_batches_of,
    prepare_stage,
    set_up_single_stage,
    training_views,
)
from finetune.training.setup import without_validation
from finetune.tuning.cross_validation import CrossValidation, Part
from finetune.tuning.logistic_regression import logistic_baseline
from finetune.tuning.search_space import (
    default_settings,
    num_folds,
    settings_around,
    settings_of,
    space_of,
)
from finetune.tuning.stacked_heads import lone_head
from finetune.tuning.trials import ranked_trials

_MOST_LIVE = 0.5
"""Largest trainable fraction of the forward pass for which cached features pay off."""


@dataclass(frozen=True)
class SearchResult:
    """Result of a search for one backbone.

    Attributes:
        config: Resolved config, with its own settings.
        parameters: Number of parameters of the network.
        num_default: Number of trials with default settings, which are numbered first.
        num_first: Number of trials of the first round, which are numbered before the second's.
        trials: All trials, sorted by `in_order`.
        search_s: Seconds that the trials took.
        elapsed_s: Seconds in total, including loading the backbone and computing its features.
        features: Rows of features computed and reused; None if none are kept.
        logistic: Logistic regression on the same folds; None if it was not fitted.
    """

    config: ResolvedConfig
    parameters: int
    input_size: int
    only_head: bool
    num_folds: int
    num_train: int
    num_val: int
    num_classes: int
    num_default: int
    num_first: int
    trials: tuple[Trial, ...]
    search_s: float
    elapsed_s: float
    features: FeatureCounts | None
    logistic: LogisticBaseline | None = None


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search that the config does not have.

    Attributes:
        in_grid: Whether to try every combination instead of random ones.
        allow_slow: Whether to allow searches in which each trial is a full training run.
    """

    in_grid: bool = False
    allow_slow: bool = False


def search(config: Config, options: SearchOptions, reporter: Reporter) -> SearchResult:
    """Run all trials of the config's ``tune`` section.

    Raises:
        ConfigError: no features can be cached, so that each trial would be a full training run, or
            the config uses something that trials do not support. Raised before weights are read,
            unless it depends on timing.
        DataError: there are too few images for the requested number of folds.
    """
    start = time.perf_counter()
    run_setup = set_up_single_stage(config, reporter, what="tune")
    own, plan, data = run_setup.stages[0], run_setup.plans[0], run_setup.data
    train = data.train
    if not len(data.val):
        raise without_validation(
            "tune compares settings",
            "search with a fraction above 0, then train the best settings with 0",
        )
    split = split_model(plan.skeleton, crop=plan.spec.preprocessing.crop, skeleton=plan.skeleton)
    only_head = lone_head(split.trainable_part) is not None
    _refuse_what_trials_leave_out(own, only_head=only_head)
    space = space_of(own, only_head=only_head, num_train=len(train))
    settings = settings_of(own, space, only_head=only_head, in_grid=options.in_grid)
    folds = folds_of(own, data)
    _refuse_steps_of_one(settings, folds, plan, len(train))

    def refuse_slow(config: PlannedConfig) -> None:
        reason = _why_slow(config, plan, has_prefix=split.prefix is not None)
        if reason and not options.allow_slow:
            epochs = max(len(folds), 1) * sum(one.epochs for one in settings)
            raise ConfigError(
                f"{reason}. {len(settings)} trials would be {epochs:,} epochs, each nearly as slow "
                "as full training",
                kind="config.slow_search",
                source="tune",
                to_do="add --allow-slow to search nevertheless, or limit it with --trials and "
                "tune.epochs",
            )

    refuse_slow(own)
    stage_setup = prepare_stage(run_setup, reporter)
    # Checked again, because auto is now resolved for augmentation and cache.
    refuse_slow(stage_setup.config)
    cv = _cross_validation(stage_setup, folds, reporter)
    reporter.say(_plan(only_head, settings, folds, len(train), len(data.val)))
    if cv.features is not None:
        reporter.say(cv.features.in_words)
    begun = time.perf_counter()
    metric = metric_of(config)
    trials = ranked_trials(cv, settings, metric=metric, reporter=reporter)
    around = settings_around(trials[0].settings, space, len(settings), seed=own.seed)
    more = [] if options.in_grid else [one for one in around if one not in settings]
    if more and trials[0].loss is not None:
        reporter.say(f"search: {len(more):,} more around the best so far")
        others = ranked_trials(cv, more, metric=metric, reporter=reporter, first=len(settings))
        trials = in_order([*trials, *others], metric)
    now = time.perf_counter()
    return SearchResult(
        config=stage_setup.config,
        parameters=sum(parameter.numel() for parameter in stage_setup.model.parameters()),
        input_size=plan.spec.preprocessing.crop,
        only_head=only_head,
        num_folds=len(folds),
        num_train=len(train),
        num_val=len(data.val),
        num_classes=len(train.class_names),
        num_default=1 if options.in_grid else len(default_settings(own, only_head=only_head)),
        num_first=len(settings),
        trials=tuple(trials),
        search_s=now - begun,
        elapsed_s=now - start,
        features=cv.features,
        logistic=logistic_baseline(cv, reporter) if only_head else None,
    )


def _refuse_what_trials_leave_out(config: Config, *, only_head: bool) -> None:
    left_out = left_out_of_trials(config, only_head=only_head)
    if left_out:
        raise ConfigError(
            "tune does not support this in its trials, so its result would not apply",
            kind="config.unsupported_by_tune",
            key=", ".join(left_out),
            to_do="search without it, and add it to the config that tune writes",
        )


def left_out_of_trials(config: Config, *, only_head: bool) -> list[str]:
    """Return the keys whose values trials do not support."""
    train, optimizer = config.train, config.optimizer
    asked = {
        "adapt": config.adapt,
        "optimizer.groups": only_head and optimizer.groups,
        "optimizer.options": optimizer.options,
        f"optimizer.name {optimizer.name}": optimizer.name not in ("sgd", "adamw", AUTO),
        "schedule.name plateau": config.schedule.name == "plateau",
        "train.accumulate": train.accumulate > 1,
        "train.clip_norm": train.clip_norm,
        "train.ema": train.ema,
        "train.early_stopping": train.early_stopping,
    }
    return [key for key, value in asked.items() if value]


def metric_of(config: Config) -> str:
    """Return the metric by which trials are ranked."""
    own = config.tune.metric if config.tune is not None else None
    return own or config.train.monitor


def folds_of(config: Config, data: TrainVal) -> tuple[Fold, ...]:
    """Return the folds that the config asks for; for auto as many as the data allows, or none."""
    count = num_folds(config, len(data.train))
    if config.tune is not None and config.tune.folds != AUTO:
        return _folds(config, data)(count) if count else ()
    return folds_at_most(count, config, data)


def folds_at_most(count: int, config: Config, data: TrainVal) -> tuple[Fold, ...]:
    """Return as many folds of the training images as the data allows; none if it allows no two."""
    make = _folds(config, data)
    for fewer in range(count, 1, -1):
        with suppress(DataError):
            return make(fewer)
    return ()


def _folds(config: Config, data: TrainVal) -> Callable[[int], tuple[Fold, ...]]:
    """Return a function of the number of folds that assigns the training images to them."""
    train = data.train
    names = keys_of(train.paths, data.base)
    groups = train.groups or groups_of_copies(names, known_contents(train.paths))
    return partial(make_folds, train.labels, names, groups, seed=config.seed)


def _refuse_steps_of_one(
    settings: Sequence[Settings], folds: Sequence[Fold], plan: Plan, num_train: int
) -> None:
    """Raise if a batch size gives a step of one image, on which norm layers cannot train."""
    smallest = min(
        size
        for number in {len(fold.train) for fold in folds} or {num_train}
        for asked in {one.batch_size for one in settings}
        for size in batch_sizes(number, asked, join_last_of_one=True)
    )
    try:
        check_input_size(plan.skeleton, plan.spec, batch_size=smallest)
    except ModelError as error:
        key = "tune.batch_size" if error.key == "data.batch_size" else error.key
        raise ConfigError(error.what, kind=error.kind, key=key, to_do=error.to_do) from error


def _keeps_features(stage_setup: StageSetup) -> bool:
    """Return whether the features of the training images are cached for all trials."""
    config = stage_setup.config
    return config.features.cache != "off" and training_views(config).count is not None


def _why_slow(config: PlannedConfig, plan: Plan, *, has_prefix: bool) -> str:
    """Return why a trial would cost nearly a full training, and what to do; else ``""``."""
    cost, freeze = plan.cost, "freeze more with freeze.patterns"
    if not has_prefix:
        return f"the first layer is trained, so no features can be cached; {freeze}"
    if config.augment.policy != AUTO and training_views(config).count is None:
        return (
            "the augmentation differs in every epoch, so no features can be cached; set "
            "augment.policy: flip, or limit the number of views with augment.views"
        )
    if config.features.cache == "off":
        return "features.cache is off: it is set to off, or the features are too large"
    share = cost.forward_trainable / (cost.forward_trainable + cost.forward_frozen)
    if share > _MOST_LIVE:
        return f"{share:.0%} of the forward pass is in the trainable part; {freeze}"
    return ""


def _plan(
    only_head: bool, settings: Sequence[Settings], folds: Sequence[Fold], train: int, val: int
) -> str:
    how = "heads, trained together" if only_head else "trials, one after another"
    judge = (
        f"{len(folds)}-fold cross-validation on {train:,} training images"
        if folds
        else f"evaluated on {val:,} validation images"
    )
    return f"search: {len(settings):,} {how}; {judge}"


def _cross_validation(
    stage_setup: StageSetup, folds: tuple[Fold, ...], reporter: Reporter
) -> CrossValidation:
    kept = _keeps_features(stage_setup)
    if kept:
        part, counts = _kept_part(stage_setup, bool(folds), reporter)
    else:
        part, counts = _fresh_part(stage_setup, reporter), None
    validation = None if folds else feature_batches_of(stage_setup, reporter, training=False)
    features = total([counts, None if validation is None else validation.counts])
    return CrossValidation.of(
        stage_setup, folds, part, kept=kept, validation=validation, features=features
    )


def _kept_part(
    stage_setup: StageSetup, held_out: bool, reporter: Reporter
) -> tuple[Part, FeatureCounts | None]:
    """Return parts of features cached for all trials and for the training after them."""
    kept = feature_batches_of(stage_setup, reporter, training=True)
    assert isinstance(kept, CachedFeatures)
    plain = kept
    if held_out and kept.views.are_random:  # then the first view is augmented, too
        found = _plain(
            stage_setup, stage_setup.config, reporter, range(len(stage_setup.data.train))
        )
        assert isinstance(found, CachedFeatures)
        plain = found

    def part(positions: Sequence[int], *, batch_size: int, training: bool) -> FeatureBatches:
        source = kept if training else plain
        return source.part(positions, batch_size=batch_size, training=training)

    return part, kept.counts if plain is kept else total([kept.counts, plain.counts])


def _fresh_part(stage_setup: StageSetup, reporter: Reporter) -> Part:
    """Return parts whose features are computed for each batch."""

    def part(positions: Sequence[int], *, batch_size: int, training: bool) -> FeatureBatches:
        config = stage_setup.config.with_values({"data.batch_size": batch_size})
        if not training:
            return _plain(stage_setup, config, reporter, positions)
        some = stage_setup.data.train.subset(positions)
        smaller = replace(stage_setup.data, train=some)
        return feature_batches_of(
            replace(stage_setup, config=config, data=smaller), reporter, training=True
        )

    return part


def _plain(
    stage_setup: StageSetup, config: ResolvedConfig, reporter: Reporter, positions: Sequence[int]
) -> FeatureBatches:
    """Return batches of training images without augmentation, like validation images."""
    images = stage_setup.data.train.subset(positions)
    return plain_batches_of(stage_setup, images, reporter, what="held-out", config=config)
