"""Normalization layers of a network, and which of them have running statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every normalization layer with its path."""
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            yield path, module


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer has running statistics that train mode updates."""
    return isinstance(module, _NormBase) and module.track_running_stats
