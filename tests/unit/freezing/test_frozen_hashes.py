"""Tests that the frozen hashes detect a single flipped bit."""

from __future__ import annotations

import pytest
import torch
from helpers.messages import fails
from torch import nn
from torchvision import models

from finetune.freezing.frozen_hashes import hash_frozen, hash_tensor


@pytest.fixture
def probe() -> nn.Module:
    model = models.shufflenet_v2_x0_5(num_classes=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    return model


def flip_one_bit(tensor: torch.Tensor) -> None:
    as_bytes = tensor.detach().view(-1).view(torch.uint8)
    as_bytes[0] ^= 1


def test_unchanged_model_verifies_every_frozen_tensor_and_buffer(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe)
    frozen = sum(not p.requires_grad for p in probe.parameters())
    assert frozen_hashes.verify(probe.state_dict(), where="x") == frozen + len(
        list(probe.buffers())
    )


def test_a_flipped_bit_of_a_parameter_is_noticed(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe)
    flip_one_bit(probe.conv1[0].weight)
    with fails("result.frozen_changed"):
        frozen_hashes.verify(probe.state_dict(), where="x")


def test_a_flipped_bit_of_a_buffer_is_noticed(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe)
    flip_one_bit(probe.conv1[1].running_mean)
    with fails("result.frozen_changed"):
        frozen_hashes.verify(probe.state_dict(), where="x")


def test_a_missing_tensor_is_noticed(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe)
    state = probe.state_dict()
    del state["conv1.0.weight"]
    with fails("result.frozen_changed"):
        frozen_hashes.verify(state, where="x")


def test_a_trained_parameter_may_change(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe)
    flip_one_bit(probe.fc.weight)
    frozen_hashes.verify(probe.state_dict(), where="x")


def test_norm_stats_update_exempts_and_lists_statistics(probe: nn.Module) -> None:
    frozen_hashes = hash_frozen(probe, update_norm_stats=True)
    flip_one_bit(probe.conv1[1].running_mean)
    frozen_hashes.verify(probe.state_dict(), where="x")
    assert "conv1.1.running_mean" in frozen_hashes.exempt


def test_buffers_of_a_partly_trained_module_are_not_under_proof() -> None:
    model = models.swin_t(num_classes=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("features.1."))
    names = hash_frozen(model).sha256
    assert "features.1.0.attn.relative_position_index" in names
    assert "features.3.0.attn.relative_position_index" not in names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_hash_depends_on_values_shape_and_dtype(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, 3).to(dtype)
    other = tensor.clone()
    other[0, 0] = 1
    assert hash_tensor(tensor) == hash_tensor(tensor.clone())
    assert len({hash_tensor(tensor), hash_tensor(other), hash_tensor(tensor.reshape(3, 2))}) == 3


def test_hash_of_a_scalar_and_of_a_strided_tensor() -> None:
    assert hash_tensor(torch.tensor(3)) != hash_tensor(torch.tensor(4))
    square = torch.arange(4.0).reshape(2, 2)
    assert hash_tensor(square.t()) == hash_tensor(square.t().contiguous())
