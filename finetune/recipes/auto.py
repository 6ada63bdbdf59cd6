"""Resolution of ``auto`` in the training sections, by `finetune.recipes.heuristics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune.config.base import AUTO
from finetune.config.optimizer import RATED
from finetune.config.resolved import PlannedConfig, ResolvedOptimizer
from finetune.config.schema import Config
from finetune.core.errors import ConfigError
from finetune.freezing.param_groups import decays
from finetune.freezing.plan import Plan
from finetune.recipes import heuristics


def plan_config(
    config: Config,
    plan: Plan,
    *,
    num_train: int,
    class_names: tuple[str, ...],
    sizes: Callable[[], Sequence[tuple[int, int]]] | None = None,
) -> PlannedConfig:
    """Resolve each ``auto`` of epochs, optimizer and warm-up; given values are kept.

    An ``augment.policy`` of ``auto`` becomes ``none`` if class names exclude mirrored images, and
    ``flip`` if most layers train on images that are too small for crops.

    Args:
        num_train: Number of training images.
        sizes: Function that returns width and height of some training images; None without images.

    Raises:
        ConfigError: There is no rule for this optimizer, or the warm-up is longer than training.
    """
    epochs, warmup = config.train.epochs, config.schedule.warmup_epochs
    if epochs == AUTO:
        epochs = heuristics.epochs_for(num_train)
    if warmup == AUTO and config.schedule.name == "one_cycle":
        warmup = 0.0  # one_cycle includes a warm-up
    if warmup == AUTO:
        warmup = float(min(_rules(config, plan, num_train).warmup_epochs, epochs / 5))
    policy, trains = config.augment.policy, what_trains(plan)
    if policy == AUTO and heuristics.policy_for(class_names, trains)[0] == "none":
        policy = "none"
    elif policy == AUTO and sizes is not None and trains == heuristics.EVERYTHING:
        policy = "flip" if heuristics.are_small(sizes()) else AUTO
    if policy == "none" and config.model.average_mirror:
        raise ConfigError(
            "predicts mirror images too, which augment.policy: none excludes from training",
            kind="config.conflict",
            key="model.average_mirror",
            to_do="set it to false, or set augment.policy to flip",
        )
    return config.resolved_as(
        PlannedConfig,
        {
            "train.epochs": epochs,
            "optimizer": dict(resolve_optimizer(config, plan, num_train)),
            "schedule.warmup_epochs": warmup,
            "augment.policy": policy,
        },
    )


def resolve_optimizer(config: Config, plan: Plan, num_train: int | None) -> ResolvedOptimizer:
    """Resolve each ``auto`` of the section ``optimizer``; given values are kept.

    Args:
        num_train: Number of training images; None without data.

    Raises:
        ConfigError: There is no rule for this optimizer.
    """
    given = config.optimizer
    if AUTO not in (given.name, given.lr, given.weight_decay):
        return given.resolved_as(ResolvedOptimizer, {})
    rules = _rules(config, plan, num_train)
    if rules.name not in RATED and given.lr == AUTO:
        raise ConfigError(
            f"auto supports {', '.join(sorted(RATED))}, not {given.name}",
            kind="config.auto_has_no_rule",
            key="optimizer.lr",
            to_do="set it to a number",
        )
    values = {"name": rules.name, "lr": rules.lr, "weight_decay": rules.weight_decay}
    kept = {key: value for key, value in given.model_dump().items() if value not in (None, AUTO)}
    return ResolvedOptimizer.model_validate(values | kept)


def _rules(config: Config, plan: Plan, num_train: int | None) -> heuristics.Optimizer:
    step = config.data.batch_size * config.train.accumulate
    name = config.optimizer.name
    if name == AUTO and config.optimizer.lr != AUTO:
        # A rate that is given belongs to one optimizer, whatever trains.
        name = heuristics.optimizer_for(
            config.model.name, config.model.weights, heuristics.HEAD
        ).name
    return heuristics.optimizer_for(
        config.model.name,
        config.model.weights,
        what_trains(plan),
        name=name,
        batch_size=step if num_train is None else min(step, num_train),
        num_train=num_train,
    )


def what_trains(plan: Plan) -> str:
    """Return ``head``, ``block`` or ``everything``, by the backbone layers with trainable weights.

    Norms and biases do not count, since they train at the head's learning rate: on ants and bees,
    training MobileNetV2's norms for 6 epochs ended with a loss of 0.15 at a rate of 0.02, and of
    0.32 at a block's 0.005. The same applies to adapters, which start from zero.
    """
    backbone = {
        name: p for name, p in plan.skeleton.named_parameters() if not plan.freeze.is_head(name)
    }
    weights = {
        plan.depths[name]
        for name, p in backbone.items()
        if p.requires_grad and name not in plan.adapters and decays(name, p.shape)
    }
    return heuristics.trains_of(len(weights), len({plan.depths[name] for name in backbone}))


def in_words(config: Config, resolved: Config, plan: Plan, num_train: int) -> list[str]:
    """Messages about the values that replaced ``auto``, and why."""
    before, after = config.plain(), resolved.plain()
    became = [
        f"{section}.{key} {after[section][key]}"
        for section in ("train", "optimizer", "schedule")
        for key, value in before[section].items()
        if value == AUTO
    ]
    lines = []
    if became:
        what = {
            heuristics.HEAD: "only the head is trained",
            heuristics.BLOCK: "some layers of the backbone are trained",
            heuristics.EVERYTHING: "most layers of the backbone are trained",
        }[what_trains(plan)]
        lines.append(f"auto, for {num_train:,} images where {what}: {', '.join(became)}")
    if before["augment"]["policy"] != after["augment"]["policy"]:
        why = {
            "none": "names of one character may be letters or digits, which no mirror keeps",
            "flip": "crops of images below 96 x 96 pixels leave too little to see",
        }
        policy = after["augment"]["policy"]
        lines.append(f"augment.policy auto is {policy}: {why[policy]}")
    return lines
