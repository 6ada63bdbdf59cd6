"""Multiply-adds of forward and backward pass, measured on the meta device (no values, no data)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from finetune.models.shapes import ShapesOnly

_BATCH = 2


@dataclass(frozen=True)
class Cost:
    """Multiply-adds (MACs) per image, and the module at which the backward pass ends.

    Attributes:
        forward_frozen: Forward MACs whose result depends on no trainable parameter.
        forward_trainable: All other forward MACs.
        backward: Backward MACs.
        backward_everything: Backward MACs if nothing were frozen.
        last_without_backward: Path of the last module in the forward pass whose output requires
            no gradient: there is no backward pass in it or before it. None if the first
            parameter is trainable.
        first_with_backward: Path of the module at which the backward pass ends.
    """

    forward_frozen: int
    forward_trainable: int
    backward: int
    backward_everything: int
    last_without_backward: str | None
    first_with_backward: str | None


def measure_cost(skeleton: nn.Module, *, crop: int) -> Cost:
    """Measure one forward and backward pass under the current ``requires_grad`` flags.

    Args:
        skeleton: Network on the meta device; its flags and modes are unchanged afterwards.
        crop: Side of the input, in pixels.
    """
    with _evaluating(skeleton):
        steps, backward = _run(skeleton, torch.empty(_BATCH, 3, crop, crop, device="meta"))
    frozen = [step for step in steps if not step.requires_grad]
    forward = sum(step.macs for step in steps)
    # Two gradients per product, but none for the image, the input of the first layer.
    first_layer = next(step.macs for step in steps if step.macs)
    first = next((step.path for step in steps if step.requires_grad), None)
    before = [step.path for step in steps[: [s.requires_grad for s in steps].index(True)]]
    return Cost(
        forward_frozen=sum(step.macs for step in frozen),
        forward_trainable=forward - sum(step.macs for step in frozen),
        backward=backward,
        backward_everything=2 * forward - first_layer,
        last_without_backward=before[-1] if before else None,
        first_with_backward=first,
    )


def module_multiply_adds(skeleton: nn.Module, *, crop: int) -> dict[str, int]:
    """Return the forward multiply-adds of one image by the path of the module that does them.

    Args:
        skeleton: Network on the meta device; its modes are unchanged afterwards.
        crop: Side of the input, in pixels.
    """
    with _evaluating(skeleton), torch.no_grad():
        steps, _ = _run(skeleton, torch.empty(_BATCH, 3, crop, crop, device="meta"))
    macs: dict[str, int] = {}
    for step in steps:
        macs[step.path] = macs.get(step.path, 0) + step.macs
    return macs


def forward_multiply_adds(module: nn.Module, crop: int, dtype: torch.dtype) -> int:
    """Return the forward multiply-adds of a module for one image.

    Args:
        crop: Side of the input, in pixels.
        dtype: Dtype of its weights.
    """
    counter = FlopCounterMode(display=False)
    with counter, ShapesOnly(), torch.no_grad():
        copy.deepcopy(module).to("meta")(
            torch.empty(_BATCH, 3, crop, crop, dtype=dtype, device="meta")
        )
    return _macs(counter.get_total_flops())


@contextmanager
def _evaluating(skeleton: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, which skips auxiliary heads, and restore its modes."""
    modes = {module: module.training for module in skeleton.modules()}
    skeleton.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class _Step:
    """Forward MACs of one module: those counted since the previous module ended."""

    path: str
    requires_grad: bool
    macs: int


def _run(model: nn.Module, images: Tensor) -> tuple[list[_Step], int]:
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward_flops}
    )
    with counter, ShapesOnly(), _recorded_steps(model, counter) as steps:
        output: Tensor = model(images)
        forward = counter.get_total_flops()
        if output.requires_grad:
            output.sum().backward()  # type: ignore[no-untyped-call]
        backward = counter.get_total_flops() - forward
    for parameter in model.parameters():
        parameter.grad = None
    return steps, _macs(backward)


def _macs(flops: int) -> int:
    """Multiply-adds per image; torch counts two FLOPs for each."""
    return flops // (2 * _BATCH)


@contextmanager
def _recorded_steps(model: nn.Module, counter: FlopCounterMode) -> Iterator[list[_Step]]:
    """Yield a list that receives each module's step."""
    steps: list[_Step] = []
    seen = 0

    def record(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            nonlocal seen
            tensor = output[0] if isinstance(output, tuple) else output
            total = counter.get_total_flops()
            # A container counts only if its own forward computes something.
            if total > seen or not list(module.children()):
                steps.append(_Step(path, tensor.requires_grad, _macs(total - seen)))
            seen = total

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in model.named_modules()]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _conv_backward_flops(
    grad_out_shape: Any,
    x_shape: Any,
    w_shape: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Any,
    out_shape: Any,  # noqa: ARG001
    **_kwargs: Any,
) -> int:
    """FLOPs of a convolution's backward pass: each of the two gradients costs one forward pass.

    torch's own formula counts grouped convolutions as dense ones: forty times too many FLOPs for
    efficientnet.
    """
    forward = conv_flop_count(x_shape, w_shape, grad_out_shape, transposed=transposed)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))
