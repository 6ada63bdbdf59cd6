"""Named recipes: the freeze patterns or stages that a value of ``recipe`` stands for.

linear_probe    trains the new head only
last_block      trains the head and the last block, as defined for the model family
norm_only       trains the head and all norm layers (Frankle et al. 2021)
bias_only       trains the head and all biases (Ben Zaken et al. 2021)
full            trains everything
head_then_all   trains the head, then as full from that state (Kumar et al. 2022)
auto            begins with linear_probe; `finetune.recipes.ladder` says how it continues
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any

from torch import nn

from finetune.config.base import AUTO
from finetune.config.model_registry import family_of
from finetune.config.schema import Config
from finetune.core.errors import ConfigError
from finetune.models.blocks import Block, last_block, units_of
from finetune.models.build import ModelSpec, build_skeleton, resolve_model
from finetune.models.norm_layers import norm_layers
from finetune.recipes.heuristics import HEAD, epochs_for, optimizer_for

_HEAD_SHARE = 5
"""Ratio of all epochs to those of the head alone, which are fast on cached features."""

_GENTLER_SGD, _GENTLER = 2.0, 20.0
"""Divisors of the head's learning rate when everything trains: with SGD, 0.01 becomes 0.005, with
AdamW, 0.001 becomes 5e-5, as in `finetune.recipes.heuristics`."""


@dataclass(frozen=True)
class Anatomy:
    """Properties of a network that determine the freeze patterns of a recipe.

    Attributes:
        name: Name of the torchvision builder.
        parameters: Name and size of each backbone parameter in the network's order, without
            auxiliary branches.
        norms: Paths of the norm layers that have parameters.
        others: Names of all backbone parameters that do not belong to a norm layer.
    """

    name: str
    parameters: tuple[tuple[str, int], ...]
    norms: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, skeleton: nn.Module, spec: ModelSpec) -> Anatomy:
        """Return the anatomy of a network on the meta device."""
        heads = tuple(f"{path}." for path in spec.heads)
        # Auxiliary branches are registered last, but do not come last in the forward pass.
        beside = tuple(f"{path}." for path in spec.family.aux_modules)
        named = [(k, p) for k, p in skeleton.named_parameters() if not k.startswith(heads)]
        norms = tuple(path for path, norm in norm_layers(skeleton) if [*norm.parameters()])
        within = tuple(f"{path}." for path in norms)
        return cls(
            spec.name,
            tuple((name, p.numel()) for name, p in named if not name.startswith(beside)),
            norms,
            tuple(name for name, _ in named if not name.startswith(within)),
        )

    @property
    def last_block(self) -> list[Block]:
        """Last blocks of the network, in units of the blocks that its family repeats."""
        return last_block(units_of(self.parameters, family_of(self.name).block))


def expand_recipe(config: Config, *, num_train: int | None) -> Config:
    """Replace ``recipe`` with the freeze patterns or stages it stands for; reads no weights.

    Args:
        num_train: Number of training images; None without data.

    Raises:
        ConfigError: The recipe does not fit this network or number of epochs.
        ModelError: The weights do not exist, or the network cannot be built.
    """
    if config.recipe is None:
        return config
    if config.recipe == "head_then_all":
        return _head_then_all(config, num_train)
    spec = resolve_model(config.model, fit=config.data.fit)
    word = "linear_probe" if config.recipe == AUTO else config.recipe
    patterns = patterns_for(word, Anatomy.of(build_skeleton(spec, 2), spec))
    values: dict[str, Any] = {"recipe": None, "freeze.patterns": patterns}
    if config.recipe == AUTO:
        values["train.budget"] = None
    return config.with_values(values)


def patterns_for(word: str, anatomy: Anatomy) -> tuple[str, ...]:
    """Return the freeze patterns of a recipe with one stage.

    Args:
        word: Name of the recipe.

    Raises:
        ConfigError: The network has no norm layers for ``norm_only``.
    """
    thawed: Sequence[str] = ()
    if word == "full":
        return ()
    if word == "last_block":
        thawed = [block.pattern for block in anatomy.last_block]
    if word == "bias_only":
        thawed = ["*bias"]
    if word == "norm_only":
        if not anatomy.norms:
            raise ConfigError(
                f"norm_only: {anatomy.name} has no norm layers with parameters",
                kind="config.recipe_does_not_fit",
                key="recipe",
                to_do="use bias_only or last_block",
            )
        thawed = globs_for(anatomy.norms, anatomy.others)
    return ("*", *(f"!{glob}" for glob in thawed))


def _head_then_all(config: Config, num_train: int | None) -> Config:
    epochs = config.train.epochs
    if epochs == AUTO:
        if num_train is None:
            raise ConfigError(
                "head_then_all divides train.epochs, which auto derives from the number of "
                "images, and the images are missing",
                kind="config.auto_needs_data",
                key="recipe",
                to_do="set train.epochs to a number",
            )
        epochs = epochs_for(num_train)
    if epochs < 2:
        raise ConfigError(
            "head_then_all divides train.epochs between two stages",
            kind="config.recipe_does_not_fit",
            key="recipe",
            to_do="set train.epochs to 2 or more",
        )
    head = max(epochs // _HEAD_SHARE, 1)
    first: dict[str, Any] = {"epochs": head, "freeze": {"patterns": ["*"]}}
    second: dict[str, Any] = {"epochs": epochs - head, "freeze": {"patterns": []}}
    optimizer, schedule = config.optimizer, config.schedule
    if optimizer.groups or optimizer.layer_decay is not None:
        # These concern the backbone, and would have no effect in the stage of the head alone.
        first["optimizer"] = {"groups": [], "layer_decay": None}
    if optimizer.lr != AUTO:
        gentler = optimizer.lr / (_GENTLER_SGD if _is_sgd(config) else _GENTLER)
        second["optimizer"] = {"lr": float(f"{gentler:.3g}")}
    if schedule.name != "one_cycle" and schedule.warmup_epochs != AUTO:
        longest = epochs - head
        warmup = min(schedule.warmup_epochs, longest)
        first["schedule"] = {"warmup_epochs": 0.0}
        second["schedule"] = {"warmup_epochs": warmup}
    stages = [first, second]
    return Config.model_validate({**config.plain(), "recipe": None, "stages": stages})


def _is_sgd(config: Config) -> bool:
    name = config.optimizer.name
    if name == AUTO:
        name = optimizer_for(config.model.name, config.model.weights, HEAD).name
    return bool(name == "sgd")


def globs_for(modules: Sequence[str], others: Collection[str]) -> tuple[str, ...]:
    """Return a small set of globs that match every parameter of some modules, and no others.

    Greedy: each step chooses the glob that matches most of the remaining modules; among equals, the
    shortest.

    Args:
        modules: Paths of modules that have parameters of their own.
        others: Names of parameters that must not be matched.
    """

    @cache
    def is_harmless(glob: str) -> bool:
        matches = re.compile(translate(glob)).match
        return not any(matches(name) for name in others)

    left, chosen = list(modules), []
    while left:
        counts = Counter(glob for path in left for glob in _globs_of(path))
        order = sorted(counts, key=lambda glob: (-counts[glob], len(glob), glob))
        best = next(filter(is_harmless, order))
        takes = re.compile(translate(best)).match
        chosen.append(best)
        left = [path for path in left if not takes(f"{path}.weight")]
    return tuple(chosen)


def _globs_of(path: str) -> Iterator[str]:
    """Yield globs that match all parameters of a module: its path, and ``*.`` with each suffix."""
    parts = path.split(".")
    yield f"{path}.*"
    for start in range(1, len(parts)):
        yield f"*.{'.'.join(parts[start:])}.*"
