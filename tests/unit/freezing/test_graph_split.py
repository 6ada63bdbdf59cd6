"""Tests that prefix and trainable part together equal the model, for every builder."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.builders import SMALLEST, is_heavy
from torch import Tensor, nn
from torchvision import models

from finetune.config.model_registry import BUILDERS, family_of
from finetune.config.schema import ModelConfig, PreprocessingConfig
from finetune.freezing.flops import forward_multiply_adds, measure_cost
from finetune.freezing.graph_split import FrozenPrefix, GraphSplit, divide_prefix, split_model
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import build_untrained, resolve_model

TOLERANCE = 2e-5
"""Relative, float32: folding a batch norm into its convolution rounds once more."""

Names = Callable[[list[str], str], set[str]]


def head_only(names: list[str], head: str) -> set[str]:
    return {name for name in names if name.startswith(f"{head}.")}


def second_half(names: list[str], head: str) -> set[str]:
    return {*names[len(names) // 2 :], *head_only(names, head)}


def a_block_in_the_middle(names: list[str], head: str) -> set[str]:
    middle = len(names) // 2
    return {*names[middle : middle + 3], *head_only(names, head)}


def one_bias(names: list[str], head: str) -> set[str]:
    biases = [name for name in names if name.endswith(".bias")]
    return {biases[len(biases) // 2], *head_only(names, head)}


def network(name: str, live: Names) -> tuple[nn.Module, int]:
    """A network with lively norm statistics, everything frozen but some names."""
    crop = SMALLEST.get(family_of(name).name, 28 if name == "vit_h_14" else 64)
    preprocessing = PreprocessingConfig(resize=crop, crop=crop)
    spec = resolve_model(ModelConfig(name=name, weights="none", preprocessing=preprocessing))
    model = build_untrained(spec, 3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    names = [key for key, _ in model.named_parameters()]
    chosen = live(names, spec.family.head)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in chosen)
    set_train_mode(model)
    return model, crop


def images_of(crop: int) -> Tensor:
    return torch.rand(4, 3, crop, crop, generator=torch.Generator().manual_seed(2))


def relative(one: Tensor, other: Tensor) -> float:
    scale = float(other.abs().max().clamp_min(1e-12))
    return float((one - other).abs().max()) / scale


def assert_equal_in_eval_mode(model: nn.Module, split: GraphSplit, crop: int) -> None:
    model.eval()
    assert split.prefix is not None
    with torch.no_grad():
        expected = model(images_of(crop))
        first, again = (split.trainable_part(*split.prefix(images_of(crop))) for _ in range(2))
    assert torch.equal(first, again)
    assert relative(first, expected) < TOLERANCE


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if is_heavy(n) else n for n in BUILDERS]
)
def test_the_parts_of_a_linear_probe_equal_the_whole(name: str) -> None:
    model, crop = network(name, head_only)
    split = split_model(model, crop=crop)
    assert len(split.crossing) == 1
    assert_equal_in_eval_mode(model, split, crop)


FAMILIES = [
    *("resnet18", "mobilenet_v2", "densenet121", "vit_b_32", "swin_t", "convnext_tiny"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "efficientnet_b0", "regnet_y_400mf", "googlenet"),
]


@pytest.mark.parametrize(
    ("name", "live"),
    [
        *((name, second_half) for name in [*FAMILIES, "maxvit_t", "inception_v3"]),
        *((name, a_block_in_the_middle) for name in ["mobilenet_v2", "vit_b_32", "swin_t"]),
        *((name, one_bias) for name in ["shufflenet_v2_x0_5", "regnet_y_400mf", "convnext_tiny"]),
        *(
            pytest.param(name, live, marks=pytest.mark.slow)
            for name in [*FAMILIES, "maxvit_t", "inception_v3"]
            for live in (a_block_in_the_middle, one_bias)
        ),
    ],
)
def test_the_parts_of_a_partial_thaw_equal_the_whole(name: str, live: Names) -> None:
    model, crop = network(name, live)
    assert_equal_in_eval_mode(model, split_model(model, crop=crop), crop)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_is_divided_where_another_one_ends(name: str) -> None:
    model, crop = network(name, second_half)
    shorter = split_model(model, crop=crop)
    assert shorter.point is not None
    assert isinstance(shorter.prefix, FrozenPrefix)
    model, crop = network(name, head_only)
    longer = split_model(model, crop=crop)
    assert longer.point is not None
    assert longer.prefix is not None
    parts = divide_prefix(model, longer.point, shorter.point.names)
    assert parts is not None
    assert parts.first.graph.code == shorter.prefix.graph.code
    assert parts.reads == shorter.reads
    between, features = parts.first(images_of(crop)), longer.prefix(images_of(crop))
    for one, other in zip(between, shorter.prefix(images_of(crop)), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(parts.rest(*between), features, strict=True):
        assert relative(one, other) < TOLERANCE


def test_a_prefix_is_divided_within_it_alone() -> None:
    model, crop = network("resnet18", head_only)
    longer = split_model(model, crop=crop).point
    model, crop = network("resnet18", second_half)
    shorter = split_model(model, crop=crop).point
    assert longer is not None
    assert shorter is not None
    assert divide_prefix(model, shorter, longer.names) is None
    assert divide_prefix(model, shorter, shorter.names) is None
    assert divide_prefix(model, shorter, ["of_another_network"]) is None
    assert divide_prefix(model, shorter, []) is None


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "swin_t"])
def test_the_multiply_adds_of_a_prefix_are_those_of_the_frozen_layers(name: str) -> None:
    model, crop = network(name, head_only)
    prefix = split_model(model, crop=crop).prefix
    assert prefix is not None
    cost = measure_cost(copy.deepcopy(model).to("meta"), crop=crop)
    counted = forward_multiply_adds(prefix.bfloat16(), crop, torch.bfloat16)
    assert counted == cost.forward_frozen


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_statistics_of_the_live_part_agree(name: str) -> None:
    """In train mode, with the same random draws on both sides.

    In float64: norm layers that train on four values blow float32's rounding up beyond any bound.
    """
    results = []
    for split_it in (False, True):
        model, crop = network(name, second_half)
        model.double()
        images, labels = images_of(crop).double(), torch.tensor([0, 1, 2, 0])
        split = split_model(model, crop=crop)
        assert split.prefix is not None
        torch.manual_seed(3)
        logits = split.trainable_part(*split.prefix(images)) if split_it else model(images)
        nn.functional.cross_entropy(logits, labels).backward()
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((grads, dict(model.named_buffers())))
    (whole_grads, whole_buffers), (split_grads, split_buffers) = results
    assert whole_grads.keys() == split_grads.keys()
    norms = {key: float(grad.norm()) for key, grad in whole_grads.items()}
    scale = max(norms.values())
    for key, grad in whole_grads.items():
        assert float((split_grads[key] - grad).norm()) < 1e-6 * max(norms[key], 1e-3 * scale), key
    for key, value in whole_buffers.items():
        torch.testing.assert_close(split_buffers[key], value, rtol=1e-9, atol=1e-9)


def test_training_the_live_part_trains_the_model() -> None:
    model, crop = network("resnet18", second_half)
    split = split_model(model, crop=crop)
    model_parameters = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in split.trainable_part.parameters() if p.requires_grad} == model_parameters


def test_the_prefix_shares_no_tensor_with_the_model() -> None:
    model, crop = network("resnet18", head_only)
    split = split_model(model, crop=crop)
    assert split.prefix is not None
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in split.prefix.state_dict().values()}


def test_convolutions_of_the_prefix_are_folded_with_their_batch_norms() -> None:
    model, crop = network("resnet18", head_only)
    split = split_model(model, crop=crop)
    assert split.prefix is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in split.prefix.modules())


def test_the_prefix_stays_in_eval_mode_and_records_no_graph() -> None:
    model, crop = network("mobilenet_v2", head_only)
    split = split_model(model, crop=crop)
    assert split.prefix is not None
    split.prefix.train()
    assert not any(module.training for module in split.prefix.modules())
    (features,) = split.prefix(images_of(crop))
    assert features.grad_fn is None


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_nothing_frozen_leaves_no_prefix(name: str) -> None:
    model, crop = network(name, lambda names, _: set(names))
    split = split_model(model, crop=crop)
    assert split.prefix is None
    assert split.trainable_part is model


def test_auxiliary_heads_leave_no_prefix() -> None:
    model = models.googlenet(num_classes=3, init_weights=False)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(("fc.", "aux")))
    set_train_mode(model)
    assert split_model(model, crop=64).prefix is None


def test_statistics_that_are_updated_are_live() -> None:
    model, crop = network("resnet18", head_only)
    set_train_mode(model, update_norm_stats=True)
    split = split_model(model, crop=crop)
    assert split.last == "conv1"


def test_the_dropout_before_the_head_is_live_and_active() -> None:
    model, crop = network("mobilenet_v2", head_only)
    split = split_model(model, crop=crop)
    set_train_mode(model)
    features = torch.ones(2, 1280)
    torch.manual_seed(0)
    assert not torch.equal(split.trainable_part(features), split.trainable_part(features))


def test_the_modes_of_the_model_are_left_as_they_were() -> None:
    model, crop = network("swin_t", second_half)
    before = [module.training for module in model.modules()]
    split_model(model, crop=crop)
    assert [module.training for module in model.modules()] == before
