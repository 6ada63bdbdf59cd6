"""Faster backward pass of strided depthwise convolutions in bfloat16 on a CPU.

oneDNN has no optimised kernel for their gradient with respect to the input: for MobileNetV2's four
it took 20 to 90 times as long as the same gradient written as a convolution (torch 2.15, AVX-512),
and more than a third of a training step. The gradient of a strided convolution with respect to its
input is a convolution with stride one of the flipped kernel and the output's gradient, dilated with
zeros (Dumoulin and Visin 2016, section 4).
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution with square kernel, stride and padding, without dilation."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        by_images = by_weight = None
        if ctx.needs_input_grad[0]:
            by_images = _by_images(gradient, images, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            _, by_weight, _ = torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight,
                bias_sizes=None,
                stride=[stride] * 2,
                padding=[padding] * 2,
                dilation=[1, 1],
                transposed=False,
                output_padding=[0, 0],
                groups=len(weight),
                output_mask=[False, True, False],
            )
        return by_images, by_weight, None, None


def _by_images(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    side = weight.shape[-1]
    # Size that the output would have with stride one.
    height, width = (size + 2 * padding - side + 1 for size in images.shape[-2:])
    last = gradient.is_contiguous(memory_format=torch.channels_last)
    spread = torch.empty(
        (*gradient.shape[:2], height, width),
        dtype=gradient.dtype,
        device=gradient.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    spread.zero_()[:, :, ::stride, ::stride] = gradient
    return F.conv2d(spread, weight.flip(2, 3), None, 1, side - 1 - padding, 1, len(weight))


def straighten(module: nn.Module) -> None:
    """Replace the backward pass of every strided depthwise convolution in ``module``, in place.

    Parameters, names and the forward pass do not change.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and _applies(part):
            part.forward = types.MethodType(_forward, part)  # type: ignore[method-assign]


def _applies(convolution: nn.Conv2d) -> bool:
    if not isinstance(convolution.padding, tuple) or convolution.padding_mode != "zeros":
        return False
    square = all(
        len(set(pair)) == 1
        for pair in (convolution.kernel_size, convolution.stride, convolution.padding)
    )
    return (
        square
        and convolution.groups == convolution.in_channels == convolution.out_channels > 1
        and convolution.stride[0] > 1
        and convolution.dilation == (1, 1)
        and convolution.padding[0] < convolution.kernel_size[0]
        and convolution.bias is None
    )


def _forward(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    half = torch.bfloat16
    if not torch.is_autocast_enabled("cpu"):
        return nn.Conv2d.forward(convolution, images)
    padding = convolution.padding
    assert isinstance(padding, tuple)
    output: Tensor = _Depthwise.apply(
        images.to(half), convolution.weight.to(half), convolution.stride[0], padding[0]
    )
    return output
