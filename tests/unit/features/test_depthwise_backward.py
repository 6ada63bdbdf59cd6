"""Tests of the backward pass of strided depthwise convolutions against autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from finetune.features.depthwise_backward import _Depthwise, straighten


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 7), (5, 1)])
@pytest.mark.parametrize(
    ("side", "padding", "stride"), [(3, 1, 2), (5, 2, 2), (3, 0, 2), (5, 1, 3)]
)
def test_gradients_are_those_of_torch(
    size: tuple[int, int], side: int, padding: int, stride: int
) -> None:
    if min(size) + 2 * padding < side:
        pytest.skip("the kernel does not fit")
    images = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, side, side, dtype=torch.float64, requires_grad=True)
    expected = torch.conv2d(images, weight, None, stride, padding, 1, 6)
    found = _Depthwise.apply(images, weight, stride, padding)
    assert torch.equal(found, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (images, weight), gradient),
        torch.autograd.grad(expected, (images, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        model(images).float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5"])
def test_a_network_keeps_its_names_its_output_and_its_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=3).eval()
    straight = copy.deepcopy(model)
    straighten(straight)
    assert straight.state_dict().keys() == model.state_dict().keys()
    expected, found = gradients(model), gradients(straight)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert float((found[key] - value).norm()) <= 0.02 * float(value.norm()) + 1e-6


def test_outside_autocast_nothing_changes() -> None:
    convolution = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
    straight = copy.deepcopy(convolution)
    straighten(straight)
    images = torch.randn(2, 4, 8, 8)
    assert torch.equal(straight(images), convolution(images))


def test_other_convolutions_are_left_alone() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, stride=1, groups=4, bias=False),
        nn.Conv2d(4, 8, 3, stride=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False, dilation=2),
        nn.Conv2d(4, 4, 3, stride=2, bias=False),
    )
    straighten(others)
    assert not any("forward" in vars(part) for part in others)


def test_a_copy_computes_with_its_own_weights() -> None:
    convolution = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)
    straighten(convolution)
    twin = copy.deepcopy(convolution)
    nn.init.zeros_(twin.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not twin(torch.randn(1, 4, 8, 8)).any()
