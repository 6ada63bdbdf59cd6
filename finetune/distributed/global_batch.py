"""Layers that see the whole batch of which this process computes some rows.

With them, a step of several processes is the step of one process, up to rounding: dropout and
stochastic depth draw the mask of the whole batch and take their rows of it, and batch norm uses the
mean and variance of all rows. torch's own function for that, which is used on GPUs, does not run on
CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from finetune.distributed.group import group

_FEWEST_ROWS = 2
"""Smallest number of rows on which batch norm can be trained."""


class _Rows:
    """Rows of the batch that is being computed: their range, and the size of the whole batch."""

    start = 0
    whole: int | None = None


@contextmanager
def rows_of_batch(start: int, whole: int) -> Iterator[None]:
    """Tell the layers which rows of the whole batch their input has.

    Args:
        start: Position of the first row.
        whole: Number of rows of all processes.
    """
    _Rows.start, _Rows.whole = start, whole
    try:
        yield
    finally:
        _Rows.whole = None


def share_layers(module: nn.Module, *, norms: bool) -> None:
    """Make random layers, and batch norms in train mode, see the whole batch; in place.

    Parameters, buffers and their names stay as they are. May be called repeatedly.

    Args:
        norms: Whether batch norms use the rows of all processes. If not, they do so only for
            batches of which a process has fewer than two rows, on which it cannot normalise.
    """
    for layer in module.modules():
        kind = _SHARED.get(type(layer))
        if kind is None:
            continue
        if issubclass(kind, _SharedNorm):
            vars(layer)["always_shared"] = norms
        layer.__class__ = kind


def norms_are_shared(module: nn.Module, whole: int) -> bool:
    """Return whether the forward pass of a batch exchanges statistics of batch norms.

    Args:
        whole: Number of rows of the batch.
    """
    return any(
        isinstance(layer, _SharedNorm) and layer.training and layer.is_shared(whole)
        for layer in module.modules()
    )


def _own_rows(mask: Tensor, rows: int) -> Tensor:
    return mask[_Rows.start : _Rows.start + rows]


class _SharedDropout(nn.Dropout):
    """Dropout whose mask is that of the whole batch."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or _Rows.whole is None or not self.p:
            return super().forward(input)
        ones = torch.ones((_Rows.whole, *input.shape[1:]), dtype=input.dtype, device=input.device)
        if input.dim() == 4 and not input.is_contiguous():  # masks are drawn in memory order
            ones = ones.contiguous(memory_format=torch.channels_last)
        return input * _own_rows(F.dropout(ones, self.p), len(input))


class _SharedStochasticDepth(StochasticDepth):  # type: ignore[misc]
    """Stochastic depth that drops the rows of the whole batch."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or _Rows.whole is None or not self.p:
            return cast(Tensor, super().forward(input))
        survival = 1.0 - self.p
        whole = [_Rows.whole if self.mode == "row" else 1] + [1] * (input.dim() - 1)
        noise = torch.empty(whole, dtype=input.dtype, device=input.device).bernoulli_(survival)
        if survival > 0:
            noise.div_(survival)
        return input * (_own_rows(noise, len(input)) if self.mode == "row" else noise)


class _SharedNorm(_BatchNorm):
    """Batch norm over the rows of all processes.

    Attributes:
        always_shared: Whether it is for batches of any size.
    """

    always_shared: bool

    def is_shared(self, whole: int) -> bool:
        """Return whether it uses the rows of all processes, for a batch of ``whole`` rows."""
        return self.always_shared or whole < _FEWEST_ROWS * group().ranks.size

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or _Rows.whole is None or not self.is_shared(_Rows.whole):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(self.num_batches_tracked or 1)
        if input.device.type == "cuda" and _Rows.whole >= group().ranks.size:
            # Faster; with an empty share it would exchange different types under autocast.
            return cast(
                Tensor,
                SyncBatchNorm.apply(
                    input,
                    self.weight,
                    self.bias,
                    self.running_mean,
                    self.running_var,
                    self.eps,
                    momentum,
                    dist.group.WORLD,
                    group().ranks.size,
                ),
            )
        output: Tensor = _NormOfAll.apply(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            momentum,
            self.eps,
        )
        return output


class _SharedNorm1d(_SharedNorm, nn.BatchNorm1d): ...


class _SharedNorm2d(_SharedNorm, nn.BatchNorm2d): ...


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: _SharedDropout,
    StochasticDepth: _SharedStochasticDepth,
    nn.BatchNorm1d: _SharedNorm1d,
    nn.BatchNorm2d: _SharedNorm2d,
}


class _NormOfAll(torch.autograd.Function):
    """Batch norm of this process's rows with the statistics of all processes' rows.

    The forward pass exchanges the sums of the values and of their squares, in float64, since their
    difference cancels in float32; the backward pass exchanges the gradients of weight and bias. The
    gradient of the weight that is returned is that of this process's rows alone, since the step
    adds up all gradients.
    """

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        dims = [0, *range(2, x.dim())]
        channels, count = x.shape[1], x.numel() // x.shape[1]
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        if count:
            var, mean = torch.var_mean(x.to(exact), dims, correction=0)
        else:
            var = mean = x.new_zeros(channels, dtype=exact)
        var, mean = var.double(), mean.double()
        own = [mean * count, (var + mean.square()) * count, mean.new_tensor([count])]
        sums = group().add_up(torch.cat(own))
        total = sums[-1]
        mean = sums[:channels] / total
        var = (sums[channels:-1] / total - mean.square()).clamp_(min=0)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * (total / (total - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        mean, var = mean.to(exact), var.to(exact)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.total, ctx.eps = float(total), eps
        # torch's kernel for given statistics is faster than single operations.
        output, _, _ = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        empty = mean.new_empty(0)
        gradient = gradient.to(x.dtype)
        # The gradient for given statistics; what these add to that of the input is linear in it.
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, empty, empty, False, ctx.eps, [True, True, True]
        )
        of_all = group().add_up(torch.cat([of_weight, of_bias]).double()) / ctx.total
        weight_mean, bias_mean = of_all.to(mean.dtype).chunk(2)
        inverse = torch.rsqrt(var + ctx.eps)
        scale = inverse * weight.to(mean.dtype)
        slope = -scale * weight_mean * inverse
        shift = -scale * bias_mean - slope * mean
        of_input = of_input.addcmul_(x, _wide(slope, x)).add_(_wide(shift, x))
        return of_input, of_weight, of_bias, None, None, None, None


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """Return values by channel in the type and shape that combine with a batch."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
