"""Sum of the gradients of all processes, exchanged while the backward pass computes the next ones.

The gradients are divided into buckets, from the last parameter to the first, since a backward pass
computes them about in this order. As soon as all gradients of a bucket are there, its all-reduce
starts; with one bucket, there is nothing to overlap. Every process exchanges all buckets in the
same order in each attempt at a step, with zeros where it could not compute, so that the processes
never wait for different exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune.distributed.group import Group

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket: the default of torch's DistributedDataParallel."""


class GradientSum:
    """Sum of the gradients of some parameters over all processes, in place.

    Args:
        parameters: Parameters that have a gradient in some process; the same in all of them.
    """

    def __init__(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
        self._group = group
        self._buckets = _in_buckets(parameters)
        self._started: list[tuple[Tensor, Callable[[], None]]] = []

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Start exchanges within the block, which runs the last backward pass of a step."""
        waiting = [{id(parameter) for parameter in bucket} for bucket in self._buckets]
        of_bucket = {
            id(p): own for own, bucket in zip(waiting, self._buckets, strict=True) for p in bucket
        }

        def has_gradient(parameter: Tensor) -> None:
            of_bucket[id(parameter)].discard(id(parameter))
            # The last bucket carries what the processes report, which is not known yet.
            while (at := len(self._started)) < len(waiting) - 1 and not waiting[at]:
                self._start(_flat(self._buckets[at]))

        hooks = [
            parameter.register_post_accumulate_grad_hook(has_gradient)  # type: ignore[no-untyped-call]
            for bucket in self._buckets
            for parameter in bucket
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, reports: Tensor, *, computed: bool) -> Tensor:
        """Wait for the sums of all gradients, and return those of the reports.

        Args:
            reports: Numbers of this process, ``(R,)``.
            computed: Whether this process has computed its gradients; if not, zeros are added.
        """
        for bucket in self._buckets:
            for parameter in bucket:
                if parameter.grad is None or not computed:
                    parameter.grad = torch.zeros_like(parameter)
        for bucket in self._buckets[len(self._started) : -1]:
            self._start(_flat(bucket))
        self._start(torch.cat([_flat(self._buckets[-1]), reports]))
        started, self._started = self._started, []
        for bucket, (flat, wait) in zip(self._buckets, started, strict=True):
            wait()
            at = 0
            for parameter in bucket:
                _grad(parameter).copy_(flat[at : at + parameter.numel()].view_as(parameter))
                at += parameter.numel()
        return flat[at:]

    def _start(self, flat: Tensor) -> None:
        self._started.append((flat, self._group.start_adding_up(flat)))


def _in_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divide parameters, from the last to the first, into buckets of about `BUCKET_BYTES`."""
    buckets: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(parameters):
        if buckets[-1] and size + parameter.nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([_grad(parameter).reshape(-1) for parameter in parameters])


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
