"""Faster passes on the meta device, which has shapes and no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


def _norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _batch_norm_backward(
    _grad: Tensor, x: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    return _gradients((x, weight, weight), rest[-1])


def _layer_norm_backward(
    _grad: Tensor, x: Tensor, _shape: Any, _mean: Tensor, _rstd: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    weight, bias, wanted = rest
    return _gradients((x, weight, bias), wanted)


def _gradients(tensors: tuple[Tensor | None, ...], wanted: list[bool]) -> tuple[Tensor | None, ...]:
    return tuple(
        torch.empty_like(tensor) if want and tensor is not None else None
        for tensor, want in zip(tensors, wanted, strict=True)
    )


def _pointwise(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


_QUICK: dict[Any, Callable[..., Any]] = {
    _aten.native_batch_norm.default: _norm,
    _aten.native_layer_norm.default: _norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten.threshold_backward.default: _pointwise,
    _aten.gelu_backward.default: _pointwise,
}


class ShapesOnly(TorchDispatchMode):
    """Mode for meta tensors in which norms and some gradients are empty tensors of their shape.

    torch computes these shapes by decomposing the operation in Python, at 1 to 5 ms each: a quarter
    of the time of a run with a small network. None of them counts as a multiply-add.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer an operation."""
        return _QUICK.get(func, func)(*args, **(kwargs or {}))
