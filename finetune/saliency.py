"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

The gradient of a class's logit says, channel by channel, how much the last spatial features speak
for it; their weighted sum, where it is positive, is the picture. A few lines: the libraries for it
bring OpenCV and scikit-learn along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_SMALLEST_SIDE = 2
"""Of features that are a picture; pooled ones have a single place."""


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """What speaks for a class, place by place.

    Args:
        model: Whole, in evaluation mode, on any device; parameters may be frozen.
        images: Normalised ``(N, 3, H, W)``.
        classes: One for each image ``(N,)``.

    Returns:
        ``(N, h, w)`` between 0 and 1 on the grid of the last spatial features, on the CPU; None
        where the network has none that a class depends on.
    """
    with _watching(model) as seen, torch.enable_grad():
        # The images ask for a gradient and no parameter does, frozen or not: what has one then
        # depends on the image. swin_v2 also computes grids of biases from its parameters alone.
        fixed = {name: parameter.detach() for name, parameter in model.named_parameters()}
        shown = images.detach().to(_device_of(model)).requires_grad_()
        logits = functional_call(model, fixed, (shown,))
        if not seen:
            return None
        chosen = logits.gather(1, classes.to(logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(chosen, seen, allow_unused=True)
    for features, gradient in zip(reversed(seen), reversed(gradients), strict=True):
        if gradient is None or not gradient.any():
            continue
        grid, slope = _as_grid(features.detach()), _as_grid(gradient)
        # A transformer's last tokens: its class depends on the first alone.
        if grid is None or slope is None or not slope.any():
            continue
        weights = slope.mean(dim=(2, 3), keepdim=True)
        picture = (weights * grid).sum(dim=1).clamp(min=0)
        highest = picture.amax(dim=(1, 2), keepdim=True)
        return (picture / highest.clamp(min=1e-12)).float().cpu()
    return None


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of all modules that have a gradient and may be a picture, in the order of their
    computation."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
        if not isinstance(output, Tensor) or not output.requires_grad or _as_grid(output) is None:
            return None
        seen.append(output)
        # What comes after may work in place: on a copy, so that what was seen stays as it was.
        return output.clone()

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _as_grid(features: Tensor) -> Tensor | None:
    """``(N, C, h, w)`` of convolutional features, or of a transformer's tokens ``(N, 1 + h * w,
    C)``; None where there is no such grid."""
    if features.dim() == 4 and min(features.shape[2:]) >= _SMALLEST_SIDE:
        return features
    if features.dim() == 3:
        side = math.isqrt(features.shape[1] - 1)
        if side >= _SMALLEST_SIDE and side * side == features.shape[1] - 1:
            return features[:, 1:].transpose(1, 2).reshape(len(features), -1, side, side)
    return None
