"""Which parameters move at which learning rate and weight decay; over names and shapes, no torch.

The rules, the strongest first: what the last of ``optimizer.groups`` that matches a parameter says;
``optimizer.layer_decay`` to the power of the layers above it; the section's own values. Weight
decay spares norms, biases and a transformer's tables, unless a group names them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from finetune.config import OptimizerConfig
from finetune.config_optimizer import GroupConfig
from finetune.errors import ConfigError
from finetune.freeze import idle_message

_TABLES = frozenset({"class_token", "pos_embedding", "relative_position_bias_table", "cpb_mlp"})
"""What timm's transformers and torchvision's references spare, as torchvision names it."""


@dataclass(frozen=True)
class Group:
    """Parameters that move alike."""

    lr: float
    weight_decay: float
    names: tuple[str, ...]


def decays(name: str, shape: Sequence[int]) -> bool:
    """Whether weight decay is for such a parameter: not for norms, biases, scales and tables.

    timm's rule (``param_groups_weight_decay``: one dimension, or a bias), where a dimension of one
    does not count: a layer scale is ``(C, 1, 1)`` here and ``(C,)`` there. With torchvision's
    ``set_weight_decay`` in its references, class token and position tables are spared as well. An
    adapter's matrices decay, of whatever rank.
    """
    if name.endswith((".lora_A", ".lora_B")):
        return True
    if sum(side > 1 for side in shape) < 2:
        return False
    return _TABLES.isdisjoint(name.split("."))


def plan_groups(
    config: OptimizerConfig,
    shapes: Mapping[str, Sequence[int]],
    *,
    depths: Mapping[str, int] | None = None,
) -> tuple[Group, ...]:
    """Sort the trainable parameters into groups, the head's first, whose learning rate is shown.

    Args:
        config: With no ``auto`` left.
        shapes: Of each trainable parameter, in the network's order.
        depths: Layers between each parameter and the head's; needed for ``layer_decay``.
    """
    deciding = _deciding(config.groups, shapes)
    members: dict[tuple[float, float], list[str]] = {}
    for name, shape in shapes.items():
        lr = config.lr
        if config.layer_decay is not None:
            assert depths is not None
            lr *= config.layer_decay ** depths[name]
        spared = not config.decay_norms_and_biases and not decays(name, shape)
        weight_decay = 0.0 if spared else config.weight_decay
        if name in deciding:
            group = deciding[name]
            lr = lr * (group.lr_scale or 1.0) if group.lr is None else group.lr
            weight_decay = weight_decay if group.weight_decay is None else group.weight_decay
        members.setdefault((lr, weight_decay), []).append(name)
    position = {name: at for at, name in enumerate(shapes)}
    last_first = sorted(members.items(), key=lambda item: -position[item[1][-1]])
    return tuple(Group(*values, tuple(names)) for values, names in last_first)


def check_groups(
    config: OptimizerConfig,
    names: Sequence[str],
    frozen: Collection[str],
    *,
    depths: Mapping[str, int],
) -> None:
    """Refuse what cannot take effect.

    Args:
        names: Of all parameters, in the network's order, and of adapters.
        frozen: Those of them that do not move.

    Raises:
        ConfigError: names every glob that matches nothing, or only what is frozen, or only what
            later groups decide; and a ``layer_decay`` that has no layer to act on.
    """
    trainable = [name for name in names if name not in frozen]
    deciding = _deciding(config.groups, trainable)
    problems = [
        f"optimizer.groups.{at}.match: {problem}"
        for at, group in enumerate(config.groups)
        for glob in group.match
        if (problem := _glob_problem(glob, group, names, frozen, deciding))
    ]
    if config.layer_decay is not None and not any(depths[name] for name in trainable):
        problems.append(
            "optimizer.layer_decay: has no effect where the head alone trains; remove it, or thaw "
            "what lies below with freeze.patterns"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _glob_problem(
    glob: str,
    group: GroupConfig,
    names: Sequence[str],
    frozen: Collection[str],
    deciding: Mapping[str, GroupConfig],
) -> str | None:
    matches = re.compile(translate(glob)).match
    matched = [name for name in names if matches(name)]
    if not matched:
        return idle_message(glob, names, without="optimizer.groups=[]")
    if all(name in frozen for name in matched):
        if any(f"{name}.lora_A" in names for name in matched):
            return f"{glob!r} matches only frozen weights; what moves is beside: '{glob}.lora_*'"
        return (
            f"{glob!r} matches only frozen parameters, which do not move; thaw them with "
            f"freeze.patterns, as in '!{glob}', or remove it here"
        )
    if not any(deciding.get(name) is group for name in matched):
        return f"{glob!r} has no effect: later groups overrule all of it"
    return None


def _deciding(groups: Sequence[GroupConfig], names: Iterable[str]) -> dict[str, GroupConfig]:
    """The last group that matches each name, for those that any matches."""
    found = {}
    for group in groups:
        globs = [re.compile(translate(glob)).match for glob in group.match]
        found.update({name: group for name in names if any(match(name) for match in globs)})
    return found
