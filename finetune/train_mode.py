"""Which modules run in train mode: the one owner of ``module.training``.

``model.train()`` alone would let frozen norm layers keep learning their statistics, and would let
dropout randomise what no trainable parameter can influence. The rules:

- a module whose parameters are all frozen is in eval mode, with everything below it;
- every other module is in train mode, and with it the random functions that its forward calls;
- a dropout module (or stochastic depth) that stands directly in a partly frozen module is inactive
  when a frozen parameter follows it and no trainable one precedes it, in the order of registration,
  which in torchvision's classifiers is the order of the forward pass. So the dropout just before
  the new head stays active, and a linear probe's backbone is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_RANDOM = (_DropoutNd, StochasticDepth)


def set_train_mode(model: nn.Module, *, update_norm_stats: bool = False) -> None:
    """Set every module's mode for training, from ``requires_grad`` alone.

    Args:
        update_norm_stats: Let wholly frozen norm layers update their statistics all the same
            (``freeze.norm_stats: update``).
    """
    order = {id(parameter): i for i, parameter in enumerate(model.parameters())}
    trainable = [i for i, p in enumerate(model.parameters()) if p.requires_grad]
    frozen = [i for i, p in enumerate(model.parameters()) if not p.requires_grad]
    first_trainable = trainable[0] if trainable else len(order)
    last_frozen = frozen[-1] if frozen else -1
    _set_modes(model, order, first_trainable, last_frozen, position=0)
    if update_norm_stats:
        for _, norm in norm_layers(model):
            if isinstance(norm, _NormBase) and norm.track_running_stats:
                norm.training = True


def _set_modes(
    module: nn.Module, order: dict[int, int], first_trainable: int, last_frozen: int, position: int
) -> int:
    """Walk in registration order; ``position`` counts the parameters met so far."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return max(position, 1 + max(order[id(p)] for p in parameters))
    module.training = True
    if isinstance(module, _RANDOM):
        precedes_all_training = first_trainable >= position
        module.training = not (precedes_all_training and last_frozen >= position)
    for parameter in module.parameters(recurse=False):
        position = max(position, 1 + order[id(parameter)])
    for child in module.children():
        position = _set_modes(child, order, first_trainable, last_frozen, position)
    return position


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every normalisation layer with its path."""
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            yield path, module


def keeps_statistics(module: nn.Module) -> bool:
    """Whether the layer has running statistics that train mode would update."""
    return isinstance(module, _NormBase) and module.track_running_stats
