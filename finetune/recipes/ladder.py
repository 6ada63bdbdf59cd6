"""Ladder of ``recipe: auto``: a probe first, then as much more training as the budget allows.

Every rung is a plain config of two stages: the new head alone on cached features, then the last
part of the network or all of it, from that state (Kumar et al. 2022). The functions here decide
what to train and for how long, from predicted times and from the accuracy of short runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.base import AUTO
from finetune.config.schema import CHOSEN_BY_LADDER, Config
from finetune.core.errors import ConfigError
from finetune.models.blocks import Block
from finetune.results.train import TrainSummary

PROBE, PART, EVERYTHING = "linear_probe", "last_part", "everything"

_PART = 0.25
"""Smallest share of the forward multiply-adds in the last part of the network.

The features before it are cached, so that its epochs take a fraction of the time. Measured with
MobileNetV2 on flowers5: an epoch of its last 30 % took a fifth of the time of one of everything.
"""
SPENT = 0.9
"""Share of the remaining time that is planned; predictions are off by a tenth."""
_SHORT = 0.15
"""Share of the remaining time for each short run."""
_FEWEST, MOST_EPOCHS = 2, 30
"""Fewest epochs for which training more than the head is worth its fixed cost; most epochs."""
_STEEPEST = 0.5
"""Largest exponent of the power law by which errors are extrapolated."""


@dataclass(frozen=True)
class Cost:
    """Predicted duration of a rung in seconds: a fixed part, and one epoch."""

    fixed_s: float
    epoch_s: float

    def epochs_in(self, seconds: float) -> int:
        """Return the number of epochs that fit, at most 30."""
        return max(min(math.floor((seconds - self.fixed_s) / self.epoch_s), MOST_EPOCHS), 0)

    def of(self, epochs: int) -> float:
        """Return the predicted duration with this number of epochs, in seconds."""
        return self.fixed_s + epochs * self.epoch_s


@dataclass(frozen=True)
class Step:
    """Candidate to train next, with its number of epochs."""

    name: str
    epochs: int


def last_part(blocks: Sequence[Block], macs: Mapping[str, int]) -> tuple[tuple[str, ...], float]:
    """Return freeze patterns that train the last blocks with a quarter of the multiply-adds, and
    their share.

    Args:
        blocks: Blocks of the network, first to last, without the head.
        macs: Forward multiply-adds by the path of the module that does them.
    """
    total, so_far = sum(macs.values()), 0
    thawed: list[str] = []
    for block in reversed(blocks):
        thawed.insert(0, f"!{block.pattern}")
        so_far += block.work(macs)
        if so_far >= _PART * total:
            break
    return ("*", *thawed), so_far / total


def next_steps(costs: Mapping[str, Cost], left_s: float) -> list[Step]:
    """Return what to train after the probe: two short runs to choose from, one run, or nothing.

    Measured with MobileNetV2: the last part reached the same accuracy as everything in a fifth of
    the time on flowers5 (95.7 %), in a third on CIFAR-100 (72.6 and 72.8 % in 12 and 6 epochs).

    Args:
        costs: Predicted durations of the candidates, from the smallest to the largest.
        left_s: Remaining time in seconds.
    """
    short = [Step(name, cost.epochs_in(_SHORT * left_s)) for name, cost in costs.items()]
    if len(short) > 1 and all(step.epochs for step in short):
        return short
    # Where a short run of everything does not fit, the last part reaches more in the same time.
    for name, cost in costs.items():
        if could_fit(cost, left_s):
            return [Step(name, cost.epochs_in(SPENT * left_s))]
    return []


def could_fit(cost: Cost, left_s: float) -> bool:
    """Return whether enough epochs of a candidate fit into the remaining time."""
    return cost.epochs_in(SPENT * left_s) >= _FEWEST


def last_step(name: str, cost: Cost, left_s: float, *, already: int) -> Step | None:
    """Return the run that spends the rest of the budget; None if it would not be longer.

    Args:
        already: Number of epochs of the short run.
    """
    epochs = cost.epochs_in(SPENT * left_s)
    return Step(name, epochs) if epochs > already else None


def without_choices(config: Config, budget: str) -> tuple[Config, list[str]]:
    """Return a config with ``recipe: auto`` and a budget, and the keys that it replaces.

    Raises:
        ConfigError: The config has adapters.
    """
    if config.adapt is not None:
        raise ConfigError(
            "recipe auto does not train adapters",
            kind="config.conflict",
            key="adapt",
            to_do="remove the section, or train without --budget",
        )
    values = _kept_values(config)
    replaced = [key for key in CHOSEN_BY_LADDER if _is_chosen(config, key)]
    if config.recipe not in (None, AUTO):
        replaced.append(f"recipe {config.recipe}")
    values["recipe"] = AUTO
    values.setdefault("train", {})["budget"] = budget
    return Config.model_validate(values), replaced


def probe_of(config: Config) -> Config:
    """Return the config with the new head alone to train, whatever it trains itself."""
    return Config.model_validate(_kept_values(config) | {"recipe": PROBE})


def _is_chosen(config: Config, key: str) -> bool:
    """Whether a key has another value than its default."""
    section, _, inner = key.partition(".")
    default = Config.model_fields[section].get_default(call_default_factory=True)
    given = getattr(config, section)
    return bool(getattr(given, inner) != getattr(default, inner) if inner else given != default)


def _kept_values(config: Config) -> dict[str, Any]:
    """Return the plain values of a config without recipe, budget and what the ladder chooses."""
    # With stages, the plain values would lack the sections that every stage has itself.
    values = config.with_values({"stages": ()}).plain()
    for key in ("recipe", "train.budget", *CHOSEN_BY_LADDER):
        section, _, inner = key.partition(".")
        (values.get(section, {}) if inner else values).pop(inner or section, None)
    return values


def rung_of(config: Config, patterns: Sequence[str], probe: TrainSummary, epochs: int) -> Config:
    """Return the config of a rung that trains more than the head.

    Args:
        config: Config with ``recipe: auto``.
        patterns: Freeze patterns of the second stage.
        probe: Summary of the first rung, which the first stage repeats without its search.
        epochs: Number of epochs of the second stage.
    """
    head: dict[str, Any] = {"epochs": probe.epochs, "freeze": {"patterns": ["*"]}}
    if probe.found_rates is not None:
        found = probe.found_rates
        name = probe.stages[0].optimizer
        head["optimizer"] = {
            "name": name,
            "lr": found.lr,
            "weight_decay": found.weight_decay,
        }
    rest = {"epochs": epochs, "freeze": {"patterns": list(patterns)}}
    return Config.model_validate(_kept_values(config) | {"stages": [head, rest]})


def extrapolated(points: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the error that a power law through the last two points predicts.

    Learning curves of the error follow a power law over a wide range (Hestness et al. 2017); here
    the duration stands for the amount of training.

    Args:
        points: Duration in seconds and error of each improvement, in order.
        seconds: Duration at which to predict.

    Returns:
        None with fewer than two points, or if one of them has no error.
    """
    if len(points) < 2:
        return None
    (before_s, before), (last_s, last) = points[-2:]
    if before <= 0 or last <= 0:
        return None
    slope = math.log(before / last) / math.log(last_s / before_s)
    return float(last * (seconds / last_s) ** -min(max(slope, 0.0), _STEEPEST))
