"""Everything that is settled before the first step; the cheap checks come first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from finetune.config import AugmentConfig, Config, DataConfig
from finetune.config_augment import DRAWN_POLICIES
from finetune.data.images import TrainVal
from finetune.data.loading import batch_sizes, resolve_workers
from finetune.data.mixing import Mixing
from finetune.data.quick_check import Checked, Skipped, quick_check
from finetune.data.sources import find_train_val
from finetune.data.views import Views
from finetune.engine import Engine, build_engine, make_source, resolve_cache
from finetune.features import Source
from finetune.model import build_untrained, check_input_size
from finetune.planning import Plan, apply_freeze, make_plan, resolve_config, resolve_policy
from finetune.progress import Progress
from finetune.proof import Proof, take_proof
from finetune.runtime import make_deterministic, select_device, use_one_heap
from finetune.train_mode import set_train_mode
from finetune.weights import load_pretrained


@dataclass(frozen=True)
class Prepared:
    """Everything settled before the first step."""

    config: Config
    """Resolved."""
    data: TrainVal
    plan: Plan
    model: nn.Module
    """Whole; its live modules are also the engine's."""
    engine: Engine
    proof: Proof
    skipped: tuple[Skipped, ...] = ()
    """Files that cannot be read and are left out."""


def prepare(config: Config, progress: Progress) -> Prepared:
    """The cheap checks first: folders, patterns and sizes fail before weights are read."""
    make_deterministic()
    use_one_heap()
    device = select_device(config.runtime.device)
    data = _found(config, progress)
    num_classes = len(data.train.class_names)
    plan = make_plan(config, num_classes)
    for warning in plan.freeze.warnings:
        progress.warn(warning)
    data, checked = _checked(data, config.data, progress)
    sizes = batch_sizes(len(data.train), config.data.batch_size, join_last_of_one=True)
    check_input_size(plan.skeleton, plan.spec, batch_size=min(sizes))
    model = build_untrained(plan.spec, num_classes, seed=config.seed)
    load_pretrained(model, plan.spec)
    apply_freeze(model, plan.freeze.frozen)
    updates = updates_norm_stats(config)
    proof = take_proof(model, update_norm_stats=updates)
    model.to(device)
    set_train_mode(model, update_norm_stats=updates)
    (progress.warn if checked.worrying else progress.say)(checked.verdict)
    progress.say(
        f"{plan.spec.name}, weights {plan.spec.weights}: {len(data.train)} training and "
        f"{len(data.val)} validation images of {num_classes} classes on {device.type}; "
        f"{proof.count} frozen tensors hashed"
    )
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
    return Prepared(resolved, data, plan, model, engine, proof, checked.skipped)


def find_data(config: Config, progress: Progress) -> tuple[TrainVal, Checked]:
    """The images that training would take, without what cannot be read."""
    return _checked(_found(config, progress), config.data, progress)


def _found(config: Config, progress: Progress) -> TrainVal:
    data = find_train_val(config.data, seed=config.seed, progress=progress)
    for note in data.notes:
        progress.say(note)
    return data


def _checked(data: TrainVal, config: DataConfig, progress: Progress) -> tuple[TrainVal, Checked]:
    """The data without what cannot be read."""
    checked = quick_check(
        data.train,
        data.val,
        on_unreadable=config.on_unreadable,
        base=data.base,
        progress=progress,
    )
    train, val = checked.parts
    train = replace(train, balanced=config.balance == "sampler")
    return replace(data, train=train, val=val), checked


def _resolve(
    config: Config, plan: Plan, data: TrainVal, engine: Engine, progress: Progress
) -> Config:
    policy = resolve_policy(config, plan, features_worth_keeping=engine.worth_keeping)
    resolved = resolve_config(
        config,
        plan,
        device=engine.device.type,
        workers=resolve_workers(config.data.workers, data.train, engine.device),
        policy=policy,
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
