"""Setup of a stage before its first optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.config.augment import DRAWN_POLICIES
from finetune.config.base import AUTO
from finetune.config.data import FULL_RANGE
from finetune.config.resolved import PlannedConfig, ResolvedConfig, ResolvedOptimizer
from finetune.config.schema import AugmentConfig, Config
from finetune.config.stages import RunConfig
from finetune.core.errors import ConfigError
from finetune.core.reporter import Reporter
from finetune.core.text import listed_patterns, plural
from finetune.core.threads import WORTH_SHARING
from finetune.data.checks.preflight import Skipped
from finetune.data.images import Images, TrainVal
from finetune.data.loading.class_weights import class_weights
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.views import Views
from finetune.data.loading.workers import resolve_workers
from finetune.distributed.global_batch import share_layers
from finetune.distributed.group import group
from finetune.distributed.ranks import ALONE, Ranks
from finetune.features.engine import (
    Engine,
    Network,
    Split,
    build_engine,
    make_source,
    resolve_cache,
)
from finetune.features.source import FeatureBatches
from finetune.freezing.freeze_report import totals_of
from finetune.freezing.frozen_hashes import FrozenHashes, hash_frozen
from finetune.freezing.lora import attach, named_trainable
from finetune.freezing.plan import Plan, apply_freeze, resolve_policy
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import build_untrained, rebuild
from finetune.models.pretrained import copy_head_rows, load_pretrained
from finetune.results.freeze import FreezeReport
from finetune.results.train import FoundRates, ParameterCounts, RunFacts, StageFacts
from finetune.training.loss import LossConfig
from finetune.training.optimizers import build_optimizer
from finetune.training.resume import ResumePoint
from finetune.training.setup import RunSetup, set_up_run
from finetune.training.step import StepConfig


@dataclass(frozen=True)
class CarriedState:
    """Weights and config that a stage passes on to the next.

    Attributes:
        state: State dict of the plain network, with the weights of the stage's last epoch as they
            were evaluated and saved.
        run_config: Config of the run, in which the stages trained so far are resolved.
    """

    state: Mapping[str, Tensor]
    run_config: RunConfig


@dataclass(frozen=True)
class StageSetup:
    """Setup of a stage, complete before its first optimizer step."""

    config: ResolvedConfig
    """Config of the stage."""
    run_config: RunConfig
    """Config of the run, in which this stage and those before are resolved."""
    data: TrainVal
    plan: Plan
    model: nn.Module
    """Whole network; its trainable modules are shared with the engine."""
    engine: Engine
    frozen_hashes: FrozenHashes
    threads: int
    """``torch.get_num_threads()`` when the stage was set up."""
    skipped: tuple[Skipped, ...] = ()
    """Unreadable files, which are left out."""

    @property
    def loss(self) -> LossConfig:
        """Options of the training loss."""
        weighted = self.config.data.balance == "weights"
        return LossConfig(
            label_smoothing=self.config.train.label_smoothing,
            class_weights=class_weights(self.data.train.counts()) if weighted else None,
            aux_weight=self.plan.spec.family.aux_weight,
        )

    @property
    def step(self) -> StepConfig:
        """Options of the optimizer steps of a run's first stage."""
        train = self.config.train
        return StepConfig(
            seed=self.config.seed, accumulate=train.accumulate, clip_norm=train.clip_norm
        )

    def with_rates(self, number: int, found: FoundRates) -> StageSetup:
        """Return the setup of the stage at index ``number`` with rates that were found for it."""
        config = self.config.with_values(
            {"optimizer.lr": found.lr, "optimizer.weight_decay": found.weight_decay}
        )
        return replace(self, config=config, run_config=self.run_config.with_stage(number, config))

    def optimizer_of(self, config: ResolvedOptimizer) -> Optimizer:
        """Return a new optimizer over the trainable parameters."""
        return build_optimizer(named_trainable(self.model), config, depths=self.plan.depths)

    @property
    def is_for_one_process(self) -> bool:
        """Whether only the first of several processes trains: a small part on cached features.

        A step would take no longer than the exchange of its gradient.
        """
        config = self.config
        is_cached = self.engine.split.prefix is not None and config.features.cache != "off"
        work = self.plan.cost.forward_trainable * config.data.batch_size
        return is_cached and training_views(config).count is not None and work < WORTH_SHARING

    def share_layers(self) -> None:
        """Make random layers and batch norms of the trainable part see the whole batch."""
        part = self.engine.trainable_part
        share_layers(part, norms=self.config.runtime.norms == "together")

    def set_mode(self) -> None:
        """Put every module into its mode for training."""
        set_train_mode(self.model, update_norm_stats=updates_norm_stats(self.config))


def prepare_stage(
    run_setup: RunSetup,
    reporter: Reporter,
    *,
    number: int = 0,
    carried: CarriedState | None = None,
    resume_point: ResumePoint | None = None,
) -> StageSetup:
    """Set up a stage for its first step, or for the step to resume at.

    Args:
        number: Index of the stage, from 0.
        carried: Weights from the previous stage; None for the first stage, which starts with the
            weights named by the config.
        resume_point: Checkpoint whose tensors are loaded instead.

    Raises:
        FinetuneError: any subclass of it.
    """
    run_config = run_setup.run_config if carried is None else carried.run_config
    config, plan, data = run_config.stages[number], run_setup.plans[number], run_setup.data
    device = run_setup.device
    reporter.status("loading the weights")
    with group().first_before_others():  # which downloads the weights
        model = _network(run_setup, carried, resume_point, reporter)
    apply_freeze(model, plan.frozen)
    updates = updates_norm_stats(config)
    frozen_hashes = hash_frozen(model, update_norm_stats=updates)
    if resume_point is not None:
        resume_point.refuse_other_frozen(frozen_hashes)
    if config.adapt is not None:
        attach(model, config.adapt.lora, tuple(plan.adapters), seed=config.seed)
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)
    if carried is None:
        checked = run_setup.checked
        (reporter.warn if checked.worrying else reporter.say)(checked.verdict)
        reporter.say(_begins(run_setup))
        for line in run_setup.chosen:
            reporter.detail(line)
    if len(run_setup.stages) > 1:
        reporter.say(_stage_begins(run_setup, number))
    reporter.detail(f"{plural(frozen_hashes.count, 'frozen tensor')} hashed")
    network = Network(
        name=plan.spec.name,
        model=model,
        preprocessing=plan.spec.preprocessing,
        frozen=frozen_hashes.sha256,
        skeleton=plan.skeleton,
        cost=plan.cost,
    )
    reporter.status("choosing the fastest compute format")
    engine = build_engine(network, config, data.train, device=device, reporter=reporter)
    resolved = resolve(config, plan, data, engine, reporter)
    return StageSetup(
        config=resolved,
        run_config=run_config.with_stage(number, resolved),
        data=data,
        plan=plan,
        model=model,
        engine=engine,
        frozen_hashes=frozen_hashes,
        threads=torch.get_num_threads(),
        skipped=run_setup.checked.skipped,
    )


def prepare_single_stage(config: Config, reporter: Reporter, *, what: str) -> StageSetup:
    """Set up the single stage of a command that supports no stages; see `set_up_single_stage`."""
    return prepare_stage(set_up_single_stage(config, reporter, what=what), reporter)


def set_up_single_stage(config: Config, reporter: Reporter, *, what: str) -> RunSetup:
    """Set up a run for a command that supports no stages.

    Args:
        what: Name of the command in the error message.

    Raises:
        ConfigError: the config has several stages.
    """
    run_setup = set_up_run(config, reporter)
    if len(run_setup.stages) > 1:
        if config.recipe:
            raise ConfigError(
                f"{what} supports a single stage, but {config.recipe} has {len(run_setup.stages)}",
                kind="config.several_stages",
                key="recipe",
                to_do="choose a recipe with one stage, as in --set recipe=linear_probe",
            )
        raise ConfigError(
            f"{what} supports a single stage, but this config has {len(run_setup.stages)}",
            kind="config.several_stages",
            key="stages",
            to_do="use a config without stages",
        )
    return run_setup


def _network(
    run_setup: RunSetup,
    carried: CarriedState | None,
    resume_point: ResumePoint | None,
    reporter: Reporter,
) -> nn.Module:
    """Return the plain network with its weights.

    Its modules are always new, because the compute formats of its parts are chosen for each stage.
    """
    spec, names = run_setup.plans[0].spec, run_setup.data.train.class_names
    if carried is not None:
        model = rebuild(spec.name, len(names), spec.build_flags)
        model.load_state_dict(carried.state)
        return model
    model = build_untrained(spec, len(names), seed=run_setup.stages[0].seed)
    if resume_point is not None:
        resume_point.fill(model)
        return model
    for note in load_pretrained(model, spec):
        reporter.say(note)
    if run_setup.kept:
        copy_head_rows(model, spec, run_setup.kept, names)
    return model


def _begins(run_setup: RunSetup) -> str:
    spec, data = run_setup.plans[0].spec, run_setup.data
    num_classes = len(data.train.class_names)
    kept = ""
    if run_setup.kept:
        kept = f"; {len(run_setup.kept)} of them keep their head rows"
    return (
        f"{spec.name}, weights {spec.weights}: {len(data.train):,} training and "
        f"{len(data.val):,} validation images of {num_classes:,} classes on "
        f"{run_setup.device.type}{kept}"
    )


def _stage_begins(run_setup: RunSetup, number: int) -> str:
    config, plan = run_setup.stages[number], run_setup.plans[number]
    patterns = listed_patterns(config.freeze.patterns)
    tensors = len(plan.freeze.decisions)
    return (
        f"stage {number + 1} of {len(run_setup.stages)}, {plural(config.train.epochs, 'epoch')}, "
        f"patterns {patterns}: {tensors - len(plan.freeze.frozen)} of {tensors} tensors trainable"
    )


def resolve(
    config: PlannedConfig, plan: Plan, data: TrainVal, engine: Engine, reporter: Reporter
) -> ResolvedConfig:
    """Resolve each ``auto`` that depends on the data, the machine and the engine's timings."""
    # Images of 8 bits alone leave the levels auto.
    levels = FULL_RANGE if config.data.levels == AUTO else config.data.levels
    workers = group().first(
        lambda: resolve_workers(
            config.data.workers,
            data.train,
            engine.device,
            batch_bytes=config.data.batch_size * engine.extractor.pixel_bytes,
        )
    )
    policy = resolve_policy(config, plan, engine.split.crossing)
    views = Views.of_training(config.augment.with_values({"policy": policy}), seed=config.seed)
    sizes = len(data.train), len(data.val)
    cache = group().first(lambda: resolve_cache(config, engine, *sizes, views, reporter))
    resolved = config.resolved_as(
        ResolvedConfig,
        {
            "model.weights": plan.spec.weights,
            "model.preprocessing": plan.spec.preprocessing.given(),
            "data.levels": levels,
            "data.workers": workers,
            "augment.policy": policy,
            "features.cache": cache,
            "runtime.device": engine.device.type,
            **{f"runtime.{key}": value for key, value in engine.runtime.items()},
        },
    )
    if cache != "off":
        said = _augmentation_and_cache(config, resolved, engine, len(data.train))
        if said:
            reporter.say(said)
    return resolved


def _augmentation_and_cache(
    config: PlannedConfig, resolved: ResolvedConfig, engine: Engine, num_train: int
) -> str:
    """Describe how the augmentation affects caching the features of training images."""
    augment, views = resolved.augment, training_views(resolved)
    seconds = engine.prefix_seconds
    extra = None if seconds is None else f"{seconds * num_train:.2g} s"
    more = "" if extra is None else f", about {extra} more each"
    if augment.mixes:
        return (
            f"{_listed(augment, 'mixup', 'cutmix')}: batches are mixed differently each time, so "
            f"the frozen part runs in every epoch{more}"
        )
    if augment.draws:
        drawn = _listed(augment, "policy", "color_jitter", "erasing")
        if views.count is not None:
            times = f"{views.count} views" if views.count > 1 else "one view"
            return (
                f"{drawn}: {times} of each image, drawn once (augment.views); "
                "0 draws new ones in every epoch"
            )
        return (
            f"{drawn}: new views in every epoch, so the frozen part runs in every epoch{more}; "
            "augment.views limits the views"
        )
    if config.augment.policy == "auto" and augment.policy == "flip":
        used = "Augmentation: each image and its mirror image"
        if resolved.data.fit != "crop":
            return f"{used}; data.fit {resolved.data.fit} does not crop"
        if extra is None:
            return f"{used}. Random crops are not cached (augment.policy: crop_flip)"
        return f"{used}. Random crops: +{extra} an epoch (augment.policy: crop_flip)"
    return ""


def _listed(augment: AugmentConfig, *keys: str) -> str:
    """List the enabled keys with their values."""
    values = {key: getattr(augment, key) for key in keys}
    on = [
        f"augment.{key} {value}"
        for key, value in values.items()
        if value and (key != "policy" or value in DRAWN_POLICIES)
    ]
    return " and ".join(on)


def training_views(config: PlannedConfig) -> Views:
    """Return the views of the training images."""
    return Views.of_training(config.augment, seed=config.seed)


def updates_norm_stats(config: PlannedConfig) -> bool:
    return config.freeze.norm_stats == "update"


def stage_facts(config: ResolvedConfig, report: FreezeReport, *, number: int) -> StageFacts:
    """Return the facts about a stage for a summary.

    Args:
        config: Config of the stage.
        number: Number of the stage, from 1.
    """
    return StageFacts(
        **vars(parameter_counts([report])),
        number=number,
        epochs=config.train.epochs,
        patterns=config.freeze.patterns,
        norm_stats=config.freeze.norm_stats,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        cut_after=report.cut.after,
        forward_once=report.cut.forward_once,
    )


def run_facts(stage_setup: StageSetup, reports: Sequence[FreezeReport]) -> RunFacts:
    """Return the facts about a run for a summary.

    Args:
        stage_setup: Setup of any of its stages.
        reports: Freeze reports of all of them.
    """
    spec, data = stage_setup.plan.spec, stage_setup.data
    return RunFacts(
        **vars(parameter_counts(reports)),
        run_dir=stage_setup.config.output_dir,
        model=spec.name,
        weights=spec.weights,
        head=spec.family.head,
        class_names=data.train.class_names,
        num_train=len(data.train),
        num_val=len(data.val),
    )


def parameter_counts(reports: Sequence[FreezeReport]) -> ParameterCounts:
    """Count what trains in at least one of these stages, and what trains in none."""
    totals = totals_of(reports)
    adapters = max((report.adapters for report in reports), key=lambda it: it.parameters)
    return ParameterCounts(
        trainable_parameters=totals.trainable + adapters.parameters,
        frozen_parameters=totals.frozen,
        trainable_tensors=totals.trainable_tensors + 2 * adapters.weights,
        frozen_tensors=totals.frozen_tensors,
    )


def plain_batches_of(
    stage_setup: StageSetup,
    images: Images,
    reporter: Reporter,
    *,
    what: str,
    config: ResolvedConfig | None = None,
) -> FeatureBatches:
    """Return the batches of images without augmentation, in their order.

    Args:
        what: Name of the images in messages.
        config: Config of the batches; by default that of the stage.
    """
    config = config or stage_setup.config
    split = Split(images, views=Views.of("none"), shuffle=False, what=what)
    return make_source(
        stage_setup.engine, config, split, workers=config.data.workers, reporter=reporter
    )


def feature_batches_of(
    stage_setup: StageSetup,
    reporter: Reporter,
    *,
    training: bool,
    both_views: bool = False,
    ranks: Ranks = ALONE,
) -> FeatureBatches:
    """Return the batches of the training images (in their views) or of the validation images.

    Args:
        both_views: Whether batches also have the features of the mirror images.
        ranks: Place of this process among those that share the batches.
    """
    config, data = stage_setup.config, stage_setup.data
    mixing = Mixing.of(config.augment, num_classes=stage_setup.plan.num_classes, seed=config.seed)
    split = Split(
        data.train if training else data.val,
        views=training_views(config) if training else Views.of("none"),
        shuffle=training,
        what="training" if training else "validation",
        mixing=mixing if training else None,
        both_views=both_views,
    )
    return make_source(
        stage_setup.engine,
        config,
        split,
        workers=config.data.workers,
        reporter=reporter,
        ranks=ranks,
    )
