"""Parameter groups: learning rate and weight decay by name and shape; imports no torch.

The rules, by precedence: the last of ``optimizer.groups`` that matches a parameter;
``optimizer.layer_decay`` to the power of the number of layers above it; the values of the
``optimizer`` section. Norms, biases and a transformer's token and position tables have no weight
decay unless a group sets it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from finetune.config.optimizer import GroupConfig
from finetune.config.resolved import ResolvedOptimizer
from finetune.config.schema import OptimizerConfig
from finetune.core.errors import ConfigError, Problem
from finetune.freezing.patterns import idle_problem

_TABLES = frozenset({"class_token", "pos_embedding", "relative_position_bias_table", "cpb_mlp"})
"""Parameters without weight decay in timm and torchvision's references, by torchvision's names."""


@dataclass(frozen=True)
class Group:
    """Parameters with the same learning rate and weight decay."""

    lr: float
    weight_decay: float
    names: tuple[str, ...]


def decays(name: str, shape: Sequence[int]) -> bool:
    """Whether weight decay applies to a parameter: not to norms, biases, layer scales and tables.

    The rule is timm's (``param_groups_weight_decay``: no decay for biases and one-dimensional
    parameters), except that dimensions of size 1 do not count: a layer scale is ``(C, 1, 1)`` in
    torchvision and ``(C,)`` in timm. As in ``set_weight_decay`` of torchvision's references, class
    token and position tables have no weight decay either. Adapter matrices of any rank have it.
    """
    if name.endswith((".lora_A", ".lora_B")):
        return True
    if sum(side > 1 for side in shape) < 2:
        return False
    return _TABLES.isdisjoint(name.split("."))


def plan_groups(
    config: ResolvedOptimizer,
    shapes: Mapping[str, Sequence[int]],
    *,
    depths: Mapping[str, int] | None = None,
) -> tuple[Group, ...]:
    """Sort the trainable parameters into groups; the first is the head's, whose rate is displayed.

    Args:
        shapes: Shape of each trainable parameter, in the network's order.
        depths: Number of layers between each parameter and the head; required by ``layer_decay``.
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
    """Check that all optimizer groups and ``layer_decay`` have an effect.

    Args:
        names: Names of all parameters in the network's order, followed by those of adapters.
        frozen: Names of the frozen parameters.

    Raises:
        ConfigError: A glob matches nothing, only frozen parameters, or only parameters that later
            groups match; or ``layer_decay`` has no layer to act on. The message lists all of them.
    """
    trainable = [name for name in names if name not in frozen]
    deciding = _deciding(config.groups, trainable)
    problems = [
        problem
        for at, group in enumerate(config.groups)
        for glob in group.match
        if (
            problem := _glob_problem(
                f"optimizer.groups.{at}.match", glob, group, names, frozen, deciding
            )
        )
    ]
    if config.layer_decay is not None and not any(depths[name] for name in trainable):
        problems.append(
            Problem(
                "config.no_effect",
                "has no effect if only the head is trained",
                "remove it, or unfreeze layers with freeze.patterns",
                key="optimizer.layer_decay",
            )
        )
    if problems:
        raise ConfigError.of(problems, kind="config.several_problems")


def _glob_problem(
    key: str,
    glob: str,
    group: GroupConfig,
    names: Sequence[str],
    frozen: Collection[str],
    deciding: Mapping[str, GroupConfig],
) -> Problem | None:
    matches = re.compile(translate(glob)).match
    matched = [name for name in names if matches(name)]
    if not matched:
        return idle_problem(key, glob, names, without="optimizer.groups=[]")
    if all(name in frozen for name in matched):
        if any(f"{name}.lora_A" in names for name in matched):
            return Problem(
                "config.no_effect",
                f"{glob!r} matches only frozen weights",
                f"match their adapters instead: '{glob}.lora_*'",
                key=key,
            )
        return Problem(
            "config.no_effect",
            f"{glob!r} matches only frozen parameters",
            f"unfreeze them with freeze.patterns, as in '!{glob}', or remove the glob",
            key=key,
        )
    if not any(deciding.get(name) is group for name in matched):
        return Problem(
            "config.no_effect",
            f"{glob!r} has no effect: later groups match all of its parameters",
            key=key,
        )
    return None


def _deciding(groups: Sequence[GroupConfig], names: Iterable[str]) -> dict[str, GroupConfig]:
    """Last matching group by name, for names that any group matches."""
    found = {}
    for group in groups:
        globs = [re.compile(translate(glob)).match for glob in group.match]
        found.update({name: group for name in names if any(match(name) for match in globs)})
    return found
