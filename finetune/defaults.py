"""What ``auto`` means in a config's training sections: the rules of `finetune.recipe`, applied."""

from __future__ import annotations

from typing import Any

from finetune import recipe
from finetune.config import Config, OptimizerConfig
from finetune.config_optimizer import RATED
from finetune.config_section import AUTO
from finetune.errors import ConfigError
from finetune.param_groups import decays
from finetune.planning import Plan


def resolve_defaults(
    config: Config,
    plan: Plan,
    *,
    num_train: int | None,
    class_names: tuple[str, ...] = (),
) -> Config:
    """The config with numbers for its ``auto``s of epochs, optimizer and warm-up; what was given
    stays.

    Args:
        num_train: Training images; None where the data is absent, and ``train.epochs`` stays open.

    Raises:
        ConfigError: there is no rule for this optimizer, or the warm-up is longer than training.
    """
    given, trains = config.optimizer, what_trains(plan)
    step = config.data.batch_size * config.train.accumulate
    rules = recipe.optimizer_for(
        config.model.name,
        config.model.weights,
        trains,
        name=given.name,
        batch_size=step if num_train is None else min(step, num_train),
    )
    epochs = config.train.epochs
    if epochs == AUTO and num_train is not None:
        epochs = recipe.epochs_for(num_train)
    warmup = config.schedule.warmup_epochs
    if warmup == AUTO:
        warmup = _warmup(config, rules, epochs)
    policy = config.augment.policy
    if policy == AUTO and class_names and recipe.policy_for(class_names, trains)[0] == "none":
        policy = "none"
    resolved = config.model_copy(
        update={
            "optimizer": _optimizer(given, rules),
            "train": config.train.model_copy(update={"epochs": epochs}),
            "schedule": config.schedule.model_copy(update={"warmup_epochs": warmup}),
            "augment": config.augment.model_copy(update={"policy": policy}),
        }
    )
    problem = "" if epochs == AUTO else resolved.schedule.warmup_problem(epochs)
    if problem:
        raise ConfigError(problem)
    return resolved


def what_trains(plan: Plan) -> str:
    """head, block or everything, by the layers of the backbone whose weights train.

    Norms and biases alone move as the head does: on ants and bees, MobileNetV2's norms ended after
    6 epochs with a loss of 0.15 at 0.02, and of 0.32 at a block's 0.005. So do adapters, which
    begin from nothing.
    """
    backbone = {
        name: p for name, p in plan.skeleton.named_parameters() if not plan.freeze.is_head(name)
    }
    weights = {
        plan.depths[name]
        for name, p in backbone.items()
        if p.requires_grad and name not in plan.adapters and decays(name, p.shape)
    }
    return recipe.trains_of(len(weights), len({plan.depths[name] for name in backbone}))


def in_words(config: Config, resolved: Config, plan: Plan, num_train: int) -> list[str]:
    """What each ``auto`` became and why, a line each."""
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
            recipe.HEAD: "no weights but the head's train",
            recipe.BLOCK: "some layers of the backbone train",
            recipe.EVERYTHING: "most layers of the backbone train",
        }[what_trains(plan)]
        lines.append(f"auto, for {num_train:,} images where {what}: {', '.join(became)}")
    if before["augment"]["policy"] != after["augment"]["policy"]:
        lines.append(
            "augment.policy auto is none: names of one character may be letters or "
            "digits, which no mirror keeps"
        )
    return lines


def _warmup(config: Config, rules: recipe.Optimizer, epochs: Any) -> float:
    if config.schedule.name == "one_cycle":
        return 0.0  # it rises by itself
    if epochs == AUTO:
        return rules.warmup_epochs
    return float(min(rules.warmup_epochs, epochs / 5))


def _optimizer(given: OptimizerConfig, rules: recipe.Optimizer) -> OptimizerConfig:
    if AUTO not in (given.name, given.lr, given.weight_decay):
        return given
    if rules.name not in RATED and given.lr == AUTO:
        raise ConfigError(
            f"optimizer.lr: auto has rules for {', '.join(sorted(RATED))}; give "
            f"{given.name} a number"
        )
    values = {"name": rules.name, "lr": rules.lr, "weight_decay": rules.weight_decay}
    kept = {key: value for key, value in given.model_dump().items() if value not in (None, AUTO)}
    return OptimizerConfig.model_validate(values | kept)
