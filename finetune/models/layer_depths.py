"""Layers of a network, first to last, for layer-wise learning rate decay.

A layer is a block (residual block, inception module, transformer block, …), or a convolution or
linear layer between blocks. torchvision registers modules in the order of the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import Encoder

from finetune.config.model_registry import Family
from finetune.models.norm_layers import NORMS

_SERIES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SERIES_BY_NAME = (Encoder, MaxVitBlock)
"""Modules other than containers whose forward pass is a series of blocks."""


@dataclass(frozen=True)
class _Unit:
    """Block, leaf module with weights, norm layer, or parameter outside of these."""

    path: str
    kind: str
    names: tuple[str, ...]


def depths_of(model: nn.Module, family: Family) -> dict[str, int]:
    """Return the number of layers after each parameter's own: 0 for the head.

    Auxiliary branches have depth 0, as they end in a head.
    """
    depths = {
        name: 0
        for branch in family.aux_modules
        for name, _ in model.named_parameters()
        if name.startswith(f"{branch}.")
    }
    for depth, names in enumerate(reversed(layers_of(model, without=family.aux_modules))):
        depths |= dict.fromkeys(names, depth)
    return {name: depths[name] for name, _ in model.named_parameters()}


def layers_of(model: nn.Module, *, without: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the parameter names of each layer, first to last.

    A norm belongs to the convolution before it; a norm after a block belongs to the next layer: the
    last norm of a transformer is part of the head, as in BEiT's layer decay (Bao et al. 2021).
    Tokens and position embeddings belong to the first layer.

    Args:
        without: Paths of modules to leave out.
    """
    layers: list[tuple[str, ...]] = []
    alone: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    takes_norm = False
    for unit in _units(model, "", top=True):
        if unit.path in without:
            continue
        if unit.kind == "alone":
            alone += unit.names
        elif unit.kind != "norm":
            layers.append(norm + unit.names)
            norm, takes_norm = (), unit.kind == "leaf"
        elif takes_norm:
            layers[-1] += unit.names
        else:
            norm += unit.names
    layers[0] = alone + layers[0]
    layers[-1] += norm
    return layers


def _units(module: nn.Module, prefix: str, *, top: bool = False) -> Iterator[_Unit]:
    for name, _ in module.named_parameters(recurse=False):
        yield _Unit(prefix + name, "alone", (prefix + name,))
    for name, child in module.named_children():
        path = prefix + name
        names = tuple(f"{path}.{inner}" for inner, _ in child.named_parameters())
        if not names:
            continue
        if _opens(child, top=top):
            yield from _units(child, f"{path}.")
        elif isinstance(child, NORMS):
            yield _Unit(path, "norm", names)
        else:
            yield _Unit(path, "block" if _is_composite(child) else "leaf", names)


def _opens(module: nn.Module, *, top: bool) -> bool:
    """Whether a module is a series of layers, rather than one layer.

    At the top level, every container is; further down, only a container with blocks, since a few
    plain layers (a patch embedding, a transition) count as one layer.
    """
    if isinstance(module, _SERIES_BY_NAME):
        return True
    return isinstance(module, _SERIES) and (top or any(map(_is_composite, module.children())))


def _is_composite(module: nn.Module) -> bool:
    """Whether a module has child modules with parameters."""
    return any(next(child.parameters(), None) is not None for child in module.children())
