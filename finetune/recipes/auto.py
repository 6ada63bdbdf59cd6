"""Resolution of ``auto`` in the training sections, by `finetune.recipes.heuristics`."""

from __future__ import annotations

from typing import Any

from finetune.config.base import AUTO
from finetune.config.optimizer import RATED
from finetune.config.schema import Config, OptimizerConfig
from finetune.core.errors import ConfigError
from finetune.freezing.param_groups import decays
from finetune.freezing.plan import Plan
from finetune.recipes import heuristics


def resolve_defaults(
    config: Config,
    plan: Plan,
    *,
    num_train: int | None,
    class_names: tuple[str, ...] = (),
) -> Config:
    """Resolve each ``auto`` of epochs, optimizer, warm-up and augmentation; given values are kept.

    Args:
        num_train: Number of training images; None without data, which leaves ``train.epochs`` auto.
        class_names: Class names, which may exclude mirrored images; empty without data.

    Raises:
        ConfigError: There is no rule for this optimizer, or the warm-up is longer than training.
    """
    given, trains = config.optimizer, what_trains(plan)
    step = config.data.batch_size * config.train.accumulate
    rules = heuristics.optimizer_for(
        config.model.name,
        config.model.weights,
        trains,
        name=given.name,
        batch_size=step if num_train is None else min(step, num_train),
    )
    epochs = config.train.epochs
    if epochs == AUTO and num_train is not None:
        epochs = heuristics.epochs_for(num_train)
    warmup = config.schedule.warmup_epochs
    if warmup == AUTO:
        warmup = _warmup(config, rules, epochs)
    policy = config.augment.policy
    if policy == AUTO and class_names and heuristics.policy_for(class_names, trains)[0] == "none":
        policy = "none"
    return config.with_values(
        {
            "optimizer": _optimizer(given, rules),
            "train.epochs": epochs,
            "schedule.warmup_epochs": warmup,
            "augment.policy": policy,
        }
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
        lines.append(
            "augment.policy auto is none: names of one character may be letters or "
            "digits, which no mirror keeps"
        )
    return lines


def _warmup(config: Config, rules: heuristics.Optimizer, epochs: Any) -> float:
    if config.schedule.name == "one_cycle":
        return 0.0  # one_cycle includes a warm-up
    if epochs == AUTO:
        return rules.warmup_epochs
    return float(min(rules.warmup_epochs, epochs / 5))


def _optimizer(given: OptimizerConfig, rules: heuristics.Optimizer) -> OptimizerConfig:
    if AUTO not in (given.name, given.lr, given.weight_decay):
        return given
    if rules.name not in RATED and given.lr == AUTO:
        raise ConfigError(
            f"auto supports {', '.join(sorted(RATED))}, not {given.name}",
            kind="config.auto_has_no_rule",
            key="optimizer.lr",
            to_do="set it to a number",
        )
    values = {"name": rules.name, "lr": rules.lr, "weight_decay": rules.weight_decay}
    kept = {key: value for key, value in given.model_dump().items() if value not in (None, AUTO)}
    return OptimizerConfig.model_validate(values | kept)
