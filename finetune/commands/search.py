"""The search of ``finetune tune``, for one backbone: what is tried, on which folds, how it did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from finetune.commands.preparation import (
    Prepared,
    prepare,
    settle_alone,
    source_of,
    training_views,
)
from finetune.config import Config
from finetune.config_section import AUTO
from finetune.data.folds import Fold, groups_of_copies, make_folds
from finetune.data.holdout import keys_of
from finetune.data.images import TrainVal
from finetune.data.loading import batch_sizes
from finetune.data.quick_check import known_contents
from finetune.data.views import Views
from finetune.engine import make_source
from finetune.errors import ConfigError, DataError, ModelError
from finetune.features import CachedFeatures, Source
from finetune.heads import lone_head
from finetune.judging import Ground, Part
from finetune.model import check_input_size
from finetune.planning import Plan
from finetune.progress import Progress
from finetune.search_space import num_folds, settings_of, space_of
from finetune.split import split_model
from finetune.trials import run_trials
from finetune.tune_results import Settings, Trial, in_order

_MOST_LIVE = 0.5
"""Of the forward pass: where more than this is live, kept features save little."""


@dataclass(frozen=True)
class Searched:
    """A backbone's search.

    Attributes:
        config: Resolved, with the config's own settings.
        trials: As `in_order` puts them.
        elapsed_s: Of everything, reading the backbone and its features included.
    """

    config: Config
    parameters: int
    input_size: int
    only_head: bool
    num_folds: int
    num_train: int
    num_val: int
    num_classes: int
    trials: tuple[Trial, ...]
    search_s: float
    elapsed_s: float


def search(config: Config, *, in_grid: bool, allow_slow: bool, progress: Progress) -> Searched:
    """Try everything that the config's section ``tune`` asks for.

    Raises:
        ConfigError: nothing of the network is kept, so that each trial would cost a whole training;
            or the config asks for what a trial does not do. Before weights are read, unless only
            timing tells.
        DataError: the images do not give so many folds.
    """
    start = time.perf_counter()
    settled = settle_alone(config, progress, what="tune")
    own, plan, data = settled.stages[0], settled.plans[0], settled.data
    train = data.train
    if not len(data.val):
        raise ConfigError(
            "data.val_fraction: 0, but tune compares settings on images that are held out; search "
            "with a share, then train the best settings with 0"
        )
    split = split_model(plan.skeleton, crop=plan.spec.preprocessing.crop, skeleton=plan.skeleton)
    only_head = lone_head(split.live) is not None
    _refuse_what_trials_leave_out(own, only_head=only_head)
    space = space_of(own, only_head=only_head, num_train=len(train))
    settings = settings_of(own, space, only_head=only_head, in_grid=in_grid)
    folds = _folds(own, data)
    _refuse_steps_of_one(settings, folds, plan, len(train))

    def refuse_slow(config: Config) -> None:
        reason = _why_slow(config, plan, has_prefix=split.prefix is not None)
        if reason and not allow_slow:
            epochs = max(len(folds), 1) * sum(one.epochs for one in settings)
            raise ConfigError(
                f"tune: {reason}. {len(settings)} trials would be {epochs:,} epochs nearly as long "
                "as training everything; --allow-slow does that, --trials and tune.epochs bound it"
            )

    refuse_slow(own)
    prepared = prepare(settled, progress)
    refuse_slow(prepared.config)  # where what it says of augmentation and cache is no auto any more
    ground = _ground(prepared, folds, progress)
    progress.say(_plan(only_head, settings, folds, len(train), len(data.val)))
    begun = time.perf_counter()
    scores = run_trials(ground, settings, progress)
    metric = metric_of(config)
    spec = plan.spec
    trials = [
        Trial.of(number, spec.name, spec.weights, one, each, metric=metric)
        for number, (one, each) in enumerate(zip(settings, scores, strict=True))
    ]
    now = time.perf_counter()
    return Searched(
        config=prepared.config,
        parameters=sum(parameter.numel() for parameter in prepared.model.parameters()),
        input_size=spec.preprocessing.crop,
        only_head=only_head,
        num_folds=len(folds),
        num_train=len(train),
        num_val=len(data.val),
        num_classes=len(train.class_names),
        trials=tuple(in_order(trials, metric)),
        search_s=now - begun,
        elapsed_s=now - start,
    )


def _refuse_what_trials_leave_out(config: Config, *, only_head: bool) -> None:
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
    left_out = [key for key, value in asked.items() if value]
    if left_out:
        raise ConfigError(
            f"{', '.join(left_out)}: the trials of tune do without, so that what they find would "
            "be of another training; search without, and add it to the config that tune writes"
        )


def metric_of(config: Config) -> str:
    """What chooses."""
    own = config.tune.metric if config.tune is not None else None
    return own or config.train.monitor


def _folds(config: Config, data: TrainVal) -> tuple[Fold, ...]:
    """As many as the config says; for auto as many of them as there can be, or none."""
    train = data.train
    names = keys_of(train.paths, data.base)
    groups = train.groups or groups_of_copies(names, known_contents(train.paths))
    make = partial(make_folds, train.labels, names, groups, seed=config.seed)
    count = num_folds(config, len(train))
    if config.tune is not None and config.tune.folds != AUTO:
        return make(count) if count else ()
    for fewer in range(count, 1, -1):
        with suppress(DataError):
            return make(fewer)
    return ()


def _refuse_steps_of_one(
    settings: Sequence[Settings], folds: Sequence[Fold], plan: Plan, num_train: int
) -> None:
    """As `finetune.commands.settling` refuses a batch size that norm layers cannot train on."""
    smallest = min(
        size
        for number in {len(fold.train) for fold in folds} or {num_train}
        for asked in {one.batch_size for one in settings}
        for size in batch_sizes(number, asked, join_last_of_one=True)
    )
    try:
        check_input_size(plan.skeleton, plan.spec, batch_size=smallest)
    except ModelError as error:
        text = str(error).replace("data.batch_size", "tune.batch_size")
        raise ConfigError(text) from error


def _keeps_features(prepared: Prepared) -> bool:
    """Whether a trial begins with what an earlier one computed."""
    config = prepared.config
    return config.features.cache != "off" and training_views(config).count is not None


def _why_slow(config: Config, plan: Plan, *, has_prefix: bool) -> str:
    """Why a trial would cost nearly what training everything costs, and what to do; or nothing."""
    cost, freeze = plan.cost, "freeze more with freeze.patterns"
    if not has_prefix:
        return f"the first layer trains, so that nothing can be computed once; {freeze}"
    if config.augment.policy != AUTO and training_views(config).count is None:
        return (
            "the augmentation is new in every epoch, so that no features can be kept; take "
            "augment.policy flip, or bound it with augment.views"
        )
    if config.features.cache == "off":
        return "no features are kept (features.cache off): they are too large, or you said so"
    share = cost.forward_live / (cost.forward_live + cost.forward_frozen)
    if share > _MOST_LIVE:
        return f"{share:.0%} of the network's work trains, or follows what does; {freeze}"
    return ""


def _plan(
    only_head: bool, settings: Sequence[Settings], folds: Sequence[Fold], train: int, val: int
) -> str:
    how = "heads, all at once" if only_head else "trials, one after another"
    judge = (
        f"{len(folds)}-fold cross-validation on {train:,} training images"
        if folds
        else f"judged on {val:,} validation images"
    )
    return f"search: {len(settings):,} {how}; {judge}"


def _ground(prepared: Prepared, folds: tuple[Fold, ...], progress: Progress) -> Ground:
    config, kept = prepared.config, _keeps_features(prepared)
    return Ground(
        engine=prepared.engine,
        config=config,
        train=prepared.data.train,
        folds=folds,
        live_work=prepared.plan.cost.forward_live,
        kept=kept,
        part=_kept_part(prepared, bool(folds), progress)
        if kept
        else _fresh_part(prepared, progress),
        validation=None if folds else source_of(prepared, progress, training=False),
        optimizer_of=prepared.optimizer_of,
        set_mode=prepared.set_mode,
        aux_weight=prepared.plan.spec.family.aux_weight,
    )


def _kept_part(prepared: Prepared, held_out: bool, progress: Progress) -> Part:
    """Parts of features that are computed once, for all trials and for the training after them."""
    kept = source_of(prepared, progress, training=True)
    assert isinstance(kept, CachedFeatures)
    plain = kept
    if held_out and kept.views.are_random:  # whose first view is no plain one
        found = _plain(prepared, prepared.config, progress, range(len(prepared.data.train)))
        assert isinstance(found, CachedFeatures)
        plain = found

    def part(positions: Sequence[int], *, batch_size: int, training: bool) -> Source:
        source = kept if training else plain
        return source.part(positions, batch_size=batch_size, training=training)

    return part


def _fresh_part(prepared: Prepared, progress: Progress) -> Part:
    """Parts that are computed anew for every batch."""

    def part(positions: Sequence[int], *, batch_size: int, training: bool) -> Source:
        data = prepared.config.data.model_copy(update={"batch_size": batch_size})
        config = prepared.config.model_copy(update={"data": data})
        if not training:
            return _plain(prepared, config, progress, positions)
        some = prepared.data.train.subset(positions)
        smaller = replace(prepared.data, train=some)
        return source_of(replace(prepared, config=config, data=smaller), progress, training=True)

    return part


def _plain(
    prepared: Prepared, config: Config, progress: Progress, positions: Sequence[int]
) -> Source:
    """Training images as validation images are seen."""
    return make_source(
        prepared.engine,
        config,
        prepared.data.train.subset(positions),
        views=Views.of("none"),
        workers=config.data.workers,
        shuffle=False,
        what="held-out",
        progress=progress,
    )
