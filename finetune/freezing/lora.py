"""LoRA through peft: find adaptable weights, attach adapters, and merge them into plain weights.

A checkpoint contains plain weights: the product of an adapter's two matrices is added to the
adapted weight. Evaluation during training uses the same sums, so that `eval` on the checkpoint
gives the same results.
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import translate
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.config.adapt import AdaptConfig, LoraConfig
from finetune.core.errors import ConfigError, Problem
from finetune.core.seeding import seed_for
from finetune.freezing.patterns import idle_problem

_KEY = "adapt.lora.targets"
_NAME = "default"
"""Default adapter name of peft."""


def adaptable(model: nn.Module, crop: int) -> list[str]:
    """Return the weights to which peft can attach an adapter.

    These are the weights of linear layers that are called as modules, and ``in_proj_weight`` of
    ``nn.MultiheadAttention``. swin's attention and the output projection of
    ``nn.MultiheadAttention`` read the weights of linear layers that they never call; an adapter
    there would be ignored.

    Args:
        model: Network on the meta device.
        crop: Side of the input, in pixels.
    """
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, path=path: called.append(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.MultiheadAttention)
    ]
    with torch.no_grad():
        model(torch.empty(2, 3, crop, crop, device="meta"))
    for hook in hooks:
        hook.remove()
    modules = {path: model.get_submodule(path) for path in called}
    names = {
        f"{path}.{'weight' if isinstance(module, nn.Linear) else 'in_proj_weight'}"
        for path, module in modules.items()
    }
    return [name for name, _ in model.named_parameters() if name in names]


def plan_adapters(
    config: AdaptConfig | None,
    model: nn.Module,
    crop: int,
    *,
    frozen: Collection[str],
    heads: Sequence[str],
) -> dict[str, int]:
    """Return the number of adapter parameters by weight name, in the network's order.

    Raises:
        ConfigError: A glob matches no frozen, adaptable weight (the message lists every such glob),
            or ``adapt.lora`` does not fit the matched weights.
    """
    if config is None:
        return {}
    lora = config.lora
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    names = list(shapes)
    possible = [
        name
        for name in adaptable(model, crop)
        if name in frozen and not any(name.startswith(f"{head}.") for head in heads)
    ]
    if not possible:
        raise ConfigError(
            "no frozen weight of this network can have an adapter",
            kind="config.nothing_to_adapt",
            key=_KEY,
            to_do='freeze the weights to adapt, as in freeze.patterns: ["*"]',
        )
    chosen: set[str] = set()
    problems = []
    for glob in lora.targets:
        matches = re.compile(translate(glob)).match
        found = {name for name in possible if matches(name)}
        chosen |= found
        if not any(map(matches, names)):
            problems.append(idle_problem(_KEY, glob, names, without="adapt=null"))
        elif not found:
            problems.append(
                Problem(
                    "config.nothing_to_adapt",
                    f"{glob!r} matches no weight that can have an adapter: frozen weights of "
                    "linear layers that are called as modules, and in_proj_weight of attention "
                    "layers",
                    f"Possible: {', '.join(possible[:4])}{' …' if len(possible) > 4 else ''}",
                    key=_KEY,
                )
            )
    if problems:
        raise ConfigError.of(problems, kind="config.several_problems")
    narrow = [name for name in possible if name in chosen and min(shapes[name]) < lora.rank]
    if narrow:
        raise ConfigError(
            f"must be at most {min(shapes[narrow[0]])}, the smaller side of {narrow[0]} "
            f"({'x'.join(map(str, shapes[narrow[0]]))}), not {lora.rank}",
            kind="config.invalid_value",
            key="adapt.lora.rank",
        )
    if lora.dropout and any(name.endswith("in_proj_weight") for name in chosen):
        raise ConfigError(
            "peft does not support dropout for in_proj_weight of an attention layer",
            kind="config.conflict",
            key="adapt.lora.dropout",
            to_do="set it to 0, or choose other targets",
        )
    return {name: lora.rank * sum(shapes[name]) for name in possible if name in chosen}


def require_peft() -> None:
    """Check that peft is installed.

    Raises:
        ConfigError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "needs the package peft, which is not installed",
            kind="config.missing_package",
            key="adapt.lora",
            to_do="install it with `python -m pip install 'finetune-vision[adapt]'`",
        )


def attach(model: nn.Module, config: LoraConfig, targets: Sequence[str], *, seed: int) -> None:
    """Attach a trainable adapter to each target and freeze the target; outputs are unchanged."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    flags = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    linear = [name.removesuffix(".weight") for name in targets if name.endswith(".weight")]
    torch.manual_seed(seed_for(seed, "adapt"))
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=linear or None,
        target_parameters=[name for name in targets if not name.endswith(".weight")] or None,
    )
    inject_adapter_in_model(settings, model)
    for parameter in model.parameters():
        parameter.requires_grad_(flags.get(id(parameter), True))
    for adapter in adapters_of(model):
        adapter.weight.requires_grad_(False)


@dataclass(frozen=True)
class Adapter:
    """One adapter of a network.

    Attributes:
        path: Path of the wrapped module in the plain network.
        key: Name of the adapted weight in the wrapped module.
        layer: Module of peft that replaces the wrapped one.
    """

    path: str
    key: str
    layer: Any

    @property
    def weight(self) -> nn.Parameter:
        """Adapted weight, without the adapter."""
        weight: nn.Parameter = getattr(self.layer.get_base_layer(), self.key)
        return weight

    @property
    def sum(self) -> Tensor:
        """Sum of the adapted weight and the product of the adapter's matrices."""
        with torch.no_grad():
            total: Tensor = self.weight + self.layer.get_delta_weight(_NAME)
        return total


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is an adapter of peft; does not import peft."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def adapters_of(model: nn.Module) -> list[Adapter]:
    """Return all adapters of a network."""
    return [
        Adapter(path, getattr(module, "parameter_name", "weight"), module)
        for path, module in model.named_modules()
        if is_adapter(module)
    ]


def named_plainly(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield all parameters; wrapped ones under their names in the plain network."""
    for name, parameter in model.named_parameters():
        yield name.replace(".base_layer", ""), parameter


def named_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters; an adapter's as ``WEIGHT.lora_A`` and ``WEIGHT.lora_B``."""
    names = {
        id(parameter): f"{adapter.path}.{adapter.key}.lora_{letter}"
        for adapter in adapters_of(model)
        for letter in "AB"
        for parameter in getattr(adapter.layer, f"lora_{letter}").parameters()
    }
    for name, parameter in named_plainly(model):
        if parameter.requires_grad:
            yield names.get(id(parameter), name), parameter


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge the adapters into the weights inside the context; restores the weights bit for bit."""
    adapters = adapters_of(model)
    before = [adapter.weight.detach().clone() for adapter in adapters]
    for adapter in adapters:
        adapter.weight.data.copy_(adapter.sum)
        adapter.layer.merged_adapters.append(_NAME)
    try:
        yield
    finally:
        for adapter, weight in zip(adapters, before, strict=True):
            adapter.layer.merged_adapters.clear()
            adapter.weight.data.copy_(weight)


def plain_state(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the ``state_dict`` of the plain network, with the adapters merged into the weights."""
    adapters = adapters_of(model)
    state: Any = model.state_dict()
    if not adapters:
        return cast(OrderedDict[str, Tensor], state)
    sums = {
        f"{adapter.path}.{adapter.key}": adapter.weight if adapter.layer.merged else adapter.sum
        for adapter in adapters
    }
    plain: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in state.items():
        if ".lora_" not in name:
            own = name.replace(".base_layer", "")
            plain[own] = sums.get(own, tensor).detach()
    versions = getattr(state, "_metadata", {})
    plain._metadata = {  # type: ignore[attr-defined]
        path.replace(".base_layer", ""): version
        for path, version in versions.items()
        if ".lora_" not in path
    }
    return plain
