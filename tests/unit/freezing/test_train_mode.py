"""Tests of which modules train mode applies to, on real networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from finetune.freezing.train_mode import set_train_mode


def frozen(model: nn.Module, *, but: tuple[str, ...]) -> nn.Module:
    """Return the model with everything frozen except the modules under these paths."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(but))
    return model


def training(model: nn.Module, path: str) -> bool:
    return model.get_submodule(path).training


def test_frozen_norm_layer_is_in_eval_mode_and_trained_one_in_train_mode() -> None:
    model = frozen(models.resnet18(), but=("layer4.", "fc."))
    set_train_mode(model)
    assert not training(model, "layer3.1.bn2")
    assert training(model, "layer4.0.bn1")


def test_norm_layer_with_one_trained_parameter_is_in_train_mode() -> None:
    model = frozen(models.resnet18(), but=("bn1.bias", "fc."))
    set_train_mode(model)
    assert training(model, "bn1")


def test_frozen_statistics_survive_training_after_an_evaluation() -> None:
    model = frozen(models.resnet18(num_classes=3), but=("fc.",))
    before = {name: value.clone() for name, value in model.named_buffers()}
    for _ in range(2):
        set_train_mode(model)
        model(torch.rand(4, 3, 32, 32))
        model.eval()
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_norm_stats_update_lets_frozen_statistics_move() -> None:
    model = frozen(models.resnet18(num_classes=3), but=("fc.",))
    before = model.bn1.running_mean.clone()
    set_train_mode(model, update_norm_stats=True)
    model(torch.rand(4, 3, 32, 32))
    assert not torch.equal(before, model.bn1.running_mean)


def test_linear_probe_keeps_only_the_dropout_before_the_head() -> None:
    model = frozen(models.vgg11(num_classes=3, init_weights=False), but=("classifier.6.",))
    set_train_mode(model)
    assert not training(model, "classifier.2")
    assert training(model, "classifier.5")


def test_dropout_before_a_frozen_layer_is_inactive_although_its_parent_trains() -> None:
    model = frozen(models.alexnet(num_classes=3), but=("classifier.6.",))
    set_train_mode(model)
    assert [training(model, f"classifier.{i}") for i in (0, 3)] == [False, False]


def test_dropout_behind_a_trained_layer_is_active_although_a_frozen_one_follows() -> None:
    model = frozen(models.alexnet(num_classes=3), but=("classifier.1.", "classifier.6."))
    set_train_mode(model)
    assert not training(model, "classifier.0")
    assert training(model, "classifier.3")


def test_dropout_between_frozen_and_trained_layers_is_active() -> None:
    model = frozen(models.alexnet(num_classes=3), but=("classifier.",))
    set_train_mode(model)
    assert training(model, "classifier.0")


def test_stochastic_depth_is_inactive_in_a_frozen_block_and_active_in_a_trained_one() -> None:
    model = frozen(models.efficientnet_b0(num_classes=3), but=("features.7.", "classifier."))
    set_train_mode(model)
    assert not training(model, "features.2.1.stochastic_depth")
    assert training(model, "features.7.0.stochastic_depth")


@pytest.mark.parametrize(
    ("name", "head"),
    [("swin_t", "head."), ("convnext_tiny", "classifier.2."), ("densenet121", "classifier.")],
)
def test_linear_probe_is_deterministic_in_train_mode(name: str, head: str) -> None:
    model = frozen(models.get_model(name, num_classes=3), but=(head,))
    set_train_mode(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


def test_dropout_of_a_vision_transformer_probe_is_inactive_up_to_the_head() -> None:
    model = models.vit_b_32(image_size=64, num_classes=3, dropout=0.5)
    frozen(model, but=("heads.head.",))
    set_train_mode(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model.heads.head.weight.normal_()
        assert torch.equal(model(images), model(images))
