"""Everything that is settled before the first step of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.adapters import attach, named_trainable
from finetune.commands.resuming import Resumed
from finetune.commands.settling import Settled, settle
from finetune.config import AugmentConfig, Config, OptimizerConfig, StageConfig
from finetune.config_augment import DRAWN_POLICIES
from finetune.data.images import TrainVal
from finetune.data.mixing import Mixing
from finetune.data.quick_check import Skipped
from finetune.data.views import Views
from finetune.data.workers import resolve_workers
from finetune.engine import Engine, build_engine, make_source, resolve_cache
from finetune.errors import ConfigError
from finetune.features import Source
from finetune.model import build_untrained, rebuild
from finetune.optim import build_optimizer
from finetune.planning import Plan, apply_freeze, resolve_config, resolve_policy
from finetune.progress import Progress
from finetune.proof import Proof, take_proof
from finetune.report.stages import listed_patterns
from finetune.report.tables import plural
from finetune.results import FreezeReport
from finetune.stage_results import StageFacts
from finetune.stages import with_stages
from finetune.train_mode import set_train_mode
from finetune.weights import copy_head_rows, load_pretrained


@dataclass(frozen=True)
class Carried:
    """What a stage hands on to the next.

    Attributes:
        state: Of the plain network, as the stage's last epoch was evaluated and saved.
        stages: Of the whole config, as they became so far.
    """

    state: Mapping[str, Tensor]
    stages: tuple[StageConfig, ...]


@dataclass(frozen=True)
class Prepared:
    """Everything settled before the first step of a run, or of a stage of one."""

    config: Config
    """Resolved; all stages stand in it."""
    data: TrainVal
    plan: Plan
    model: nn.Module
    """Whole; its live modules are also the engine's."""
    engine: Engine
    proof: Proof
    given: Config
    """Before anything in it was resolved."""
    threads: int
    """Of torch."""
    skipped: tuple[Skipped, ...] = ()
    """Files that cannot be read and are left out."""

    def optimizer_of(self, config: OptimizerConfig) -> Optimizer:
        """A new one over what trains."""
        return build_optimizer(named_trainable(self.model), config, depths=self.plan.depths)

    def set_mode(self) -> None:
        """Put every module into its mode for training."""
        set_train_mode(self.model, update_norm_stats=updates_norm_stats(self.config))


def prepare(
    settled: Settled,
    progress: Progress,
    *,
    number: int = 0,
    carried: Carried | None = None,
    resumed: Resumed | None = None,
) -> Prepared:
    """A stage, ready for its first step, or for the one that it goes on with.

    Args:
        number: Of the stage, from 0.
        carried: From the stage before; the first begins with the weights that the config names.
        resumed: Whose tensors are taken in place of either.

    Raises:
        FinetuneError: any of its kinds.
    """
    config, plan, data = settled.stages[number], settled.plans[number], settled.data
    device = settled.device
    model = _network(settled, carried, resumed, progress)
    apply_freeze(model, plan.held)
    updates = updates_norm_stats(config)
    proof = take_proof(model, update_norm_stats=updates)
    if resumed is not None:
        resumed.refuse_other_frozen(proof)
    if config.adapt is not None:
        attach(model, config.adapt.lora, tuple(plan.adapters), seed=config.seed)
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)
    if carried is None:
        for line in settled.chosen:
            progress.say(line)
        checked = settled.checked
        (progress.warn if checked.worrying else progress.say)(checked.verdict)
        progress.say(f"{_begins(settled)}; {proof.count} frozen tensors hashed")
    if len(settled.stages) > 1:
        progress.say(f"{_stage_begins(settled, number)}; {proof.count} frozen tensors hashed")
    engine = build_engine(
        model,
        config,
        plan.spec.preprocessing,
        data.train,
        frozen=proof.sha256,
        device=device,
        progress=progress,
        skeleton=plan.skeleton,
        cost=plan.cost,
    )
    resolved = _resolve(config, plan, data, engine, progress)
    stages = settled.config.stages if carried is None else carried.stages
    return Prepared(
        with_stages(resolved, stages, number),
        data,
        plan,
        model,
        engine,
        proof,
        given=settled.given,
        threads=torch.get_num_threads(),
        skipped=settled.checked.skipped,
    )


def prepare_alone(config: Config, progress: Progress, *, what: str) -> Prepared:
    """As `prepare`, for a command that works on one stage; the arguments are `settle_alone`'s."""
    return prepare(settle_alone(config, progress, what=what), progress)


def settle_alone(config: Config, progress: Progress, *, what: str) -> Settled:
    """As `settle`, for a command that works on one stage.

    Args:
        what: The command, for the message.

    Raises:
        ConfigError: the config has several stages.
    """
    settled = settle(config, progress)
    if len(settled.stages) > 1:
        several = f"{what} works on one stage, and"
        if config.recipe:
            raise ConfigError(
                f"recipe: {several} {config.recipe} has {len(settled.stages)}; give it a recipe of "
                "one, as in --set recipe=linear_probe"
            )
        raise ConfigError(
            f"stages: {several} this config has {len(settled.stages)}; give it a config without"
        )
    return settled


def _network(
    settled: Settled, carried: Carried | None, resumed: Resumed | None, progress: Progress
) -> nn.Module:
    """The plain network with its weights, in new modules: the forms of its parts are chosen anew,
    however it came about."""
    spec, names = settled.plans[0].spec, settled.data.train.class_names
    if carried is not None:
        model = rebuild(spec.name, len(names), spec.build_flags)
        model.load_state_dict(carried.state)
        return model
    model = build_untrained(spec, len(names), seed=settled.config.seed)
    if resumed is not None:
        resumed.fill(model)
        return model
    for note in load_pretrained(model, spec):
        progress.say(note)
    if settled.kept:
        copy_head_rows(model, spec, settled.kept, names)
    return model


def _begins(settled: Settled) -> str:
    spec, data = settled.plans[0].spec, settled.data
    num_classes = len(data.train.class_names)
    kept = ""
    if settled.kept:
        kept = f"; {len(settled.kept)} of them keep their rows of the head"
    return (
        f"{spec.name}, weights {spec.weights}: {len(data.train)} training and "
        f"{len(data.val)} validation images of {num_classes} classes on {settled.device.type}{kept}"
    )


def _stage_begins(settled: Settled, number: int) -> str:
    config, plan = settled.stages[number], settled.plans[number]
    patterns = listed_patterns(config.freeze.patterns)
    tensors = len(plan.freeze.decisions)
    return (
        f"stage {number + 1} of {len(settled.stages)}, {plural(config.train.epochs, 'epoch')}, "
        f"patterns {patterns}: {tensors - len(plan.freeze.frozen)} of {tensors} tensors train"
    )


def _resolve(
    config: Config, plan: Plan, data: TrainVal, engine: Engine, progress: Progress
) -> Config:
    resolved = resolve_config(
        config,
        plan,
        device=engine.device.type,
        workers=resolve_workers(
            config.data.workers,
            data.train,
            engine.device,
            batch_bytes=config.data.batch_size * engine.computation.pixel_bytes,
        ),
        policy=resolve_policy(config, plan, engine.split.crossing),
    )
    cache = resolve_cache(
        resolved, engine, len(data.train), len(data.val), training_views(resolved), progress
    )
    if cache != "off":
        said = _augmentation_and_cache(config, resolved, engine, len(data.train))
        if said:
            progress.say(said)
    return resolved.model_copy(
        update={
            "features": resolved.features.model_copy(update={"cache": cache}),
            "runtime": resolved.runtime.model_copy(update=engine.runtime),
        }
    )


def _augmentation_and_cache(
    config: Config, resolved: Config, engine: Engine, num_train: int
) -> str:
    """What the training images' augmentation means for features that could be kept."""
    augment, views = resolved.augment, training_views(resolved)
    seconds = engine.prefix_seconds
    more = "" if seconds is None else f", about {seconds * num_train:.2g} s more each"
    if augment.mixes:
        return (
            f"{_listed(augment, 'mixup', 'cutmix')}: images of a batch are mixed anew each time, "
            "so that no features of training images can be kept: the frozen part runs in every "
            f"epoch{more}"
        )
    if augment.draws:
        drawn = _listed(augment, "policy", "color_jitter", "erasing")
        if views.count is not None:
            times = f"{views.count} views" if views.count > 1 else "one view"
            return (
                f"{drawn}: {times} of each image, drawn once and kept (augment.views); "
                "0 draws new ones in every epoch"
            )
        return (
            f"{drawn}: new views in every epoch, so that no features of training images can be "
            f"kept: the frozen part runs in every epoch{more} (augment.views bounds that)"
        )
    if config.augment.policy == "auto" and augment.policy == "flip":
        other = (
            f"crop_flip would run the frozen part in every epoch{more} (augment.views bounds that)"
        )
        whole = f"data.fit {resolved.data.fit} keeps photos whole"
        return (
            "augment.policy auto is flip: two views of each image are computed once; "
            f"{other if resolved.data.fit == 'crop' else whole}"
        )
    return ""


def _listed(augment: AugmentConfig, *keys: str) -> str:
    """Those that are on, with their values."""
    values = {key: getattr(augment, key) for key in keys}
    on = [
        f"augment.{key} {value}"
        for key, value in values.items()
        if value and (key != "policy" or value in DRAWN_POLICIES)
    ]
    return " and ".join(on)


def training_views(config: Config) -> Views:
    """Of the training images."""
    return Views.of_training(config.augment, seed=config.seed)


def updates_norm_stats(config: Config) -> bool:
    return config.freeze.norm_stats == "update"


def stage_facts(config: Config, report: FreezeReport, *, number: int) -> StageFacts:
    """What a prepared stage is, for a summary.

    Args:
        config: Of the stage, resolved.
        number: From 1.
    """
    totals, adapters = report.totals, report.adapters
    return StageFacts(
        number=number,
        epochs=config.train.epochs,
        patterns=config.freeze.patterns,
        norm_stats=config.freeze.norm_stats,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        trainable_parameters=totals.trainable + adapters.parameters,
        frozen_parameters=totals.frozen,
        trainable_tensors=totals.trainable_tensors + 2 * adapters.weights,
        frozen_tensors=totals.frozen_tensors,
        cut_after=report.cut.after,
        forward_once=report.cut.forward_once,
    )


def source_of(prepared: Prepared, progress: Progress, *, training: bool) -> Source:
    """The batches of the training images in the views of training, or of the validation images."""
    config, data = prepared.config, prepared.data
    mixing = Mixing.of(config.augment, num_classes=prepared.plan.num_classes, seed=config.seed)
    return make_source(
        prepared.engine,
        config,
        data.train if training else data.val,
        views=training_views(config) if training else Views.of("none"),
        workers=config.data.workers,
        shuffle=training,
        what="training" if training else "validation",
        progress=progress,
        mixing=mixing if training else None,
    )
