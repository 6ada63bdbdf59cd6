"""Gradients of all processes are added up in buckets, most of them during the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from finetune.distributed import gradient_sum
from finetune.distributed.gradient_sum import GradientSum
from finetune.distributed.group import Group


class TwoAlike:
    """Group of this process and another one that always has the same numbers."""

    def __init__(self) -> None:
        self.started: list[int] = []

    def start_adding_up(self, tensor: Tensor) -> Callable[[], None]:
        self.started.append(tensor.numel())
        return lambda: cast(None, tensor.mul_(2))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Three layers of 6, 8 and 5 parameters, of which a bucket takes one."""
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", 36)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4, bias=False), nn.Linear(4, 1))


def backward(network: nn.Module) -> None:
    network(torch.ones(3, 2)).sum().backward()


def summed(network: nn.Module, group: TwoAlike) -> GradientSum:
    return GradientSum(cast(Group, group), list(network.parameters()))


def test_all_buckets_but_the_last_are_exchanged_during_the_backward_pass(
    network: nn.Sequential,
) -> None:
    group = TwoAlike()
    exchanged = summed(network, group)
    with exchanged.overlapping():
        backward(network)
    assert group.started == [5, 8]
    exchanged.finish(torch.ones(3), computed=True)
    assert group.started == [5, 8, 6 + 3]


@pytest.mark.parametrize("overlaps", [True, False])
def test_the_sums_replace_the_gradients(network: nn.Sequential, overlaps: bool) -> None:
    backward(network)
    own = [
        parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None
    ]
    network.zero_grad()
    exchanged = summed(network, TwoAlike())
    if overlaps:
        with exchanged.overlapping():
            backward(network)
    else:
        backward(network)
    reports = exchanged.finish(torch.tensor([1.0, 3.0]), computed=True)
    assert reports.tolist() == [2.0, 6.0]
    for parameter, expected in zip(network.parameters(), own, strict=True):
        assert torch.equal(cast(Tensor, parameter.grad), 2 * expected)


def test_a_process_that_fails_exchanges_the_same_buckets(network: nn.Sequential) -> None:
    group = TwoAlike()
    exchanged = summed(network, group)
    network[1].weight.register_hook(lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError), exchanged.overlapping():
        backward(network)
    assert group.started == [5]
    exchanged.finish(torch.ones(3), computed=False)
    assert group.started == [5, 8, 6 + 3]
    assert not cast(Tensor, network[0].weight.grad).any()


def test_hooks_do_not_outlive_the_backward_pass(network: nn.Sequential) -> None:
    group = TwoAlike()
    exchanged = summed(network, group)
    with exchanged.overlapping():
        pass
    backward(network)
    assert not group.started
