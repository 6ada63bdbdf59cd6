"""Train and eval mode of modules; only this module sets ``module.training`` for training.

``model.train()`` alone would update the running statistics of frozen norm layers, and would apply
dropout to activations that no trainable parameter influences. The rules:

- a module whose parameters are all frozen is in eval mode, including its submodules;
- every other module is in train mode, including the random functions that its forward calls;
- a dropout module (or stochastic depth) that is a direct child of a partly frozen module is
  inactive if a frozen parameter follows it and no trainable one precedes it, in registration order,
  which in torchvision's classifiers is the order of the forward pass. The dropout just before
  the new head therefore stays active, and the backbone of a linear probe is deterministic.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from finetune.models.norm_layers import norm_layers

_RANDOM = (_DropoutNd, StochasticDepth)


def set_train_mode(model: nn.Module, *, update_norm_stats: bool = False) -> None:
    """Set the mode of every module for training, based on ``requires_grad`` only.

    Args:
        update_norm_stats: Whether frozen norm layers still update their running statistics
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
    """Set modes in registration order; ``position`` is the number of parameters visited so far."""
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
