"""What the words of the config's ``recipe`` stand for: freeze patterns, or stages.

linear_probe    the new head alone
last_block      the head and the network's last block, as its family is built
norm_only       the head and every norm layer (Frankle et al. 2021)
bias_only       the head and every bias (Ben Zaken et al. 2021)
full            everything
head_then_all   the head, then everything from where that led (Kumar et al. 2022)
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

from finetune.backbones import family_of
from finetune.blocks import Block, last_block, units_of
from finetune.config import Config
from finetune.config_section import AUTO
from finetune.errors import ConfigError
from finetune.model import ModelSpec, build_skeleton, resolve_model
from finetune.recipe import EVERYTHING, epochs_for, optimizer_for
from finetune.train_mode import norm_layers

_HEAD_SHARE = 5
"""One in so many epochs trains the head alone: on kept features they take next to no time."""

_GENTLER_SGD, _GENTLER = 2.0, 20.0
"""Everything trains at a head's learning rate divided by this: 0.01 becomes 0.005 with SGD, 0.001
becomes 5e-5 with AdamW, as in `finetune.recipe`."""


@dataclass(frozen=True)
class Anatomy:
    """What the rules look at in a network.

    Attributes:
        parameters: Name and size of each between image and head, in the network's order.
        norms: Paths of the norm layers that have parameters.
        others: Names of all parameters of the backbone that are no norm layer's.
    """

    name: str
    parameters: tuple[tuple[str, int], ...]
    norms: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, skeleton: nn.Module, spec: ModelSpec) -> Anatomy:
        """Of a network on the meta device."""
        heads = tuple(f"{path}." for path in spec.heads)
        # Auxiliary branches come last by their names, but not by what flows.
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
        """The end of the network that holds the last of the blocks that its family repeats."""
        return last_block(units_of(self.parameters, family_of(self.name).block))


def expand_recipe(config: Config, *, num_train: int | None) -> Config:
    """The config with what its ``recipe`` stands for in the recipe's place; reads no weights.

    Args:
        num_train: Training images; None where the data is absent.

    Raises:
        ConfigError: this network, or so few epochs, cannot be trained that way.
        ModelError: no such weights, or the network cannot be built.
    """
    if config.recipe is None:
        return config
    if config.recipe == "head_then_all":
        return _head_then_all(config, num_train)
    spec = resolve_model(config.model, fit=config.data.fit)
    patterns = patterns_for(config.recipe, Anatomy.of(build_skeleton(spec, 2), spec))
    freeze = config.freeze.model_copy(update={"patterns": patterns})
    return config.model_copy(update={"recipe": None, "freeze": freeze})


def patterns_for(word: str, anatomy: Anatomy) -> tuple[str, ...]:
    """The freeze patterns of a recipe of one stage.

    Raises:
        ConfigError: the network has nothing of the kind.
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
                f"recipe: norm_only: {anatomy.name} has no norm layers that could train; take "
                "bias_only or last_block"
            )
        thawed = globs_for(anatomy.norms, anatomy.others)
    return ("*", *(f"!{glob}" for glob in thawed))


def _head_then_all(config: Config, num_train: int | None) -> Config:
    epochs = config.train.epochs
    if epochs == AUTO:
        if num_train is None:
            raise ConfigError(
                "recipe: head_then_all divides train.epochs, which auto chooses by the number of "
                "images; they are absent, so give it a number"
            )
        epochs = epochs_for(num_train)
    if epochs < 2:
        raise ConfigError(
            "recipe: head_then_all divides train.epochs between two stages; give it 2 or more"
        )
    head = max(epochs // _HEAD_SHARE, 1)
    first: dict[str, Any] = {"epochs": head, "freeze": {"patterns": ["*"]}}
    second: dict[str, Any] = {"epochs": epochs - head, "freeze": {"patterns": []}}
    optimizer, schedule = config.optimizer, config.schedule
    if optimizer.groups or optimizer.layer_decay is not None:
        # Of the backbone: they would have no effect where the head alone trains.
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
        name = optimizer_for(config.model.name, config.model.weights, EVERYTHING).name
    return bool(name == "sgd")


def globs_for(modules: Sequence[str], others: Collection[str]) -> tuple[str, ...]:
    """Few globs that match every parameter of some modules, and none of the others.

    Args:
        modules: Paths of modules that hold parameters of their own.
        others: Names of parameters that must not be matched.

    Each time the glob that takes most of what is left is chosen; of equals the shortest.
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
    """What takes all of a module: its whole path, or the end of it behind any beginning."""
    parts = path.split(".")
    yield f"{path}.*"
    for start in range(1, len(parts)):
        yield f"*.{'.'.join(parts[start:])}.*"
