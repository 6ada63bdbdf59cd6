"""Grad-CAM heat maps (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

The channels of the last spatial features are weighted by the mean gradient of the class logit; the
positive part of their weighted sum is the heat map. It is implemented here because the libraries
for it depend on OpenCV and scikit-learn.
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
"""Smallest side of a usable feature map; pooled features have a single position."""


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Compute one Grad-CAM heat map per image.

    Args:
        model: Complete network in eval mode, on any device; parameters may be frozen.
        images: Normalized images ``(N, 3, H, W)``.
        classes: Class index to explain for each image ``(N,)``.

    Returns:
        Heat maps ``(N, h, w)`` in [0, 1] at the resolution of the last spatial features, on the
        CPU; None if the logits depend on no spatial features.
    """
    with _watching(model) as seen, torch.enable_grad():
        # Only the images require gradients, so that every tensor that requires one depends on the
        # images. swin_v2 also computes grids of biases from parameters alone.
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
        # The logits depend on the class token only, not on a transformer's last patch tokens.
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
    """Record module outputs that require a gradient and have a spatial grid, in forward order."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
        if not isinstance(output, Tensor) or not output.requires_grad or _as_grid(output) is None:
            return None
        seen.append(output)
        # Later modules may work in place; they get a copy, so that the recorded output is kept.
        return output.clone()

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _as_grid(features: Tensor) -> Tensor | None:
    """Return features as ``(N, C, h, w)``; None if they have no spatial grid.

    Accepts convolutional features, and square token grids ``(N, 1 + h * w, C)`` of transformers.
    """
    if features.dim() == 4 and min(features.shape[2:]) >= _SMALLEST_SIDE:
        return features
    if features.dim() == 3:
        side = math.isqrt(features.shape[1] - 1)
        if side >= _SMALLEST_SIDE and side * side == features.shape[1] - 1:
            return features[:, 1:].transpose(1, 2).reshape(len(features), -1, side, side)
    return None
