"""Tests of layer depths for one network of each family, against explicit lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from finetune.config.model_registry import BUILDERS, FAMILIES, family_of
from finetune.config.schema import ModelConfig, OptimizerConfig
from finetune.models.build import build_skeleton, resolve_model
from finetune.models.layer_depths import depths_of
from finetune.training.optimizers import build_optimizer

Layers = list[tuple[str, ...]]


def down(prefix: str, last: int, first: int = 0) -> Layers:
    """``prefix`` with numbers from ``last`` down to ``first``."""
    return [(f"{prefix}{number}",) for number in range(last, first - 1, -1)]


# Module or parameter paths of each layer, the head's first.
LAYERS: dict[str, Layers] = {
    "alexnet": [
        *(("classifier.6",), ("classifier.4",), ("classifier.1",)),
        *(("features.10",), ("features.8",), ("features.6",), ("features.3",), ("features.0",)),
    ],
    "vgg11_bn": [
        *(("classifier.6",), ("classifier.3",), ("classifier.0",)),
        *((f"features.{at}", f"features.{at + 1}") for at in (25, 22, 18, 15, 11, 8, 4, 0)),
    ],
    "resnet18": [
        ("fc",),
        *(*down("layer4.", 1), *down("layer3.", 1), *down("layer2.", 1), *down("layer1.", 1)),
        ("conv1", "bn1"),
    ],
    "regnet_y_400mf": [
        ("fc",),
        *down("trunk_output.block4.block4-", 5),
        *down("trunk_output.block3.block3-", 5),
        *down("trunk_output.block2.block2-", 2),
        *down("trunk_output.block1.block1-", 0),
        ("stem",),
    ],
    "shufflenet_v2_x0_5": [
        *(("fc",), ("conv5",)),
        *(*down("stage4.", 3), *down("stage3.", 7), *down("stage2.", 3)),
        ("conv1",),
    ],
    "googlenet": [
        *(("fc",), ("inception5b",), ("inception5a",)),
        *((f"inception4{letter}",) for letter in "edcba"),
        *(("inception3b",), ("inception3a",), ("conv3",), ("conv2",), ("conv1",)),
    ],
    "inception_v3": [
        ("fc",),
        *((f"Mixed_7{letter}",) for letter in "cba"),
        *((f"Mixed_6{letter}",) for letter in "edcba"),
        *((f"Mixed_5{letter}",) for letter in "dcb"),
        *(("Conv2d_4a_3x3",), ("Conv2d_3b_1x1",)),
        *(("Conv2d_2b_3x3",), ("Conv2d_2a_3x3",), ("Conv2d_1a_3x3",)),
    ],
    "densenet121": [
        ("classifier", "features.norm5"),
        *down("features.denseblock4.denselayer", 16, 1),
        ("features.transition3",),
        *down("features.denseblock3.denselayer", 24, 1),
        ("features.transition2",),
        *down("features.denseblock2.denselayer", 12, 1),
        ("features.transition1",),
        *down("features.denseblock1.denselayer", 6, 1),
        ("features.conv0", "features.norm0"),
    ],
    "squeezenet1_1": [
        ("classifier.1",),
        *((f"features.{at}",) for at in (12, 11, 10, 9, 7, 6, 4, 3, 0)),
    ],
    "mobilenet_v2": [("classifier.1",), *down("features.", 18)],
    "mobilenet_v3_small": [("classifier.3",), ("classifier.0",), *down("features.", 12)],
    "mnasnet0_5": [
        *(("classifier.1",), ("layers.14", "layers.15")),
        *(*down("layers.13.", 0), *down("layers.12.", 3), *down("layers.11.", 1)),
        *(*down("layers.10.", 2), *down("layers.9.", 2), *down("layers.8.", 2)),
        *(("layers.6", "layers.7"), ("layers.3", "layers.4"), ("layers.0", "layers.1")),
    ],
    "efficientnet_b0": [
        *(("classifier.1",), ("features.8",)),
        *(*down("features.7.", 0), *down("features.6.", 3), *down("features.5.", 2)),
        *(*down("features.4.", 2), *down("features.3.", 1), *down("features.2.", 1)),
        *(*down("features.1.", 0), ("features.0",)),
    ],
    "convnext_tiny": [
        ("classifier.2", "classifier.0"),
        *(*down("features.7.", 2), ("features.6",), *down("features.5.", 8), ("features.4",)),
        *(*down("features.3.", 2), ("features.2",), *down("features.1.", 2), ("features.0",)),
    ],
    "vit_b_16": [
        ("heads.head", "encoder.ln"),
        *down("encoder.layers.encoder_layer_", 11),
        ("conv_proj", "class_token", "encoder.pos_embedding"),
    ],
    "swin_t": [
        ("head", "norm"),
        *(*down("features.7.", 1), ("features.6",), *down("features.5.", 5), ("features.4",)),
        *(*down("features.3.", 1), ("features.2",), *down("features.1.", 1), ("features.0",)),
    ],
    "maxvit_t": [
        *(("classifier.5",), ("classifier.3", "classifier.2")),
        *(*down("blocks.3.layers.", 1), *down("blocks.2.layers.", 4)),
        *(*down("blocks.1.layers.", 1), *down("blocks.0.layers.", 1)),
        *(("stem.1",), ("stem.0",)),
    ],
}
LAYERS["swin_v2_t"] = LAYERS["swin_t"]


def skeleton(name: str, **options: bool) -> nn.Module:
    return build_skeleton(resolve_model(ModelConfig(name=name, **options)), 3)


def depth_of(name: str, layers: Layers) -> int:
    """The one layer of an explicit list that a parameter belongs to."""
    found = [
        depth
        for depth, paths in enumerate(layers)
        if any(name == path or name.startswith(f"{path}.") for path in paths)
    ]
    assert len(found) == 1, name
    return found[0]


def test_every_family_has_its_list() -> None:
    assert {family_of(name).name for name in LAYERS} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", LAYERS)
def test_a_parameters_learning_rate_is_the_decay_to_the_power_of_its_depth(name: str) -> None:
    model = skeleton(name)
    config = OptimizerConfig.model_validate({"lr": 1.0, "layer_decay": 0.5})
    optimizer = build_optimizer(
        model.named_parameters(), config, depths=depths_of(model, family_of(name))
    )
    rates = {
        parameter: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["param_names"]
    }
    assert rates == {
        parameter: 0.5 ** depth_of(parameter, LAYERS[name])
        for parameter, _ in model.named_parameters()
    }


def in_forward_order(model: nn.Module, size: int) -> Iterator[str]:
    """Paths of leaf modules with parameters, as one forward pass calls them."""
    called: list[str] = []
    for path, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _m, _i, path=path: called.append(path))
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    yield from called


@pytest.mark.parametrize("name", LAYERS)
def test_the_forward_pass_comes_up_through_the_layers(name: str) -> None:
    spec = resolve_model(ModelConfig(name=name))
    model = build_skeleton(spec, 3)
    depths = depths_of(model, spec.family)
    deepest = {name.rpartition(".")[0]: depth for name, depth in depths.items()}
    passed = [
        deepest[path]
        for path in in_forward_order(model, spec.preprocessing.crop)
        if path in deepest
    ]
    assert len(passed) > 5
    assert passed == sorted(passed, reverse=True)


@pytest.mark.parametrize(
    ("name", "branches"), [("googlenet", ("aux1.", "aux2.")), ("inception_v3", ("AuxLogits.",))]
)
def test_auxiliary_branches_count_as_the_head(name: str, branches: tuple[str, ...]) -> None:
    without = depths_of(skeleton(name), family_of(name))
    kept = depths_of(skeleton(name, aux_heads=True), family_of(name))
    assert {n: d for n, d in kept.items() if not n.startswith(branches)} == without
    assert {d for n, d in kept.items() if n.startswith(branches)} == {0}


def test_every_builder_has_layers_from_its_head_to_its_first_parameter() -> None:
    """Names and shapes alone: all 80 take seconds."""
    for name in BUILDERS:
        if name in ("regnet_y_128gf", "vit_h_14"):
            continue  # as their smaller siblings
        spec = resolve_model(ModelConfig(name=name))
        model = build_skeleton(spec, 3)
        depths = depths_of(model, spec.family)
        assert list(depths) == [parameter for parameter, _ in model.named_parameters()]
        assert set(depths.values()) == set(range(max(depths.values()) + 1))
        head = {depth for key, depth in depths.items() if key.startswith(f"{spec.family.head}.")}
        assert (name, head) == (name, {0})
        assert next(iter(depths.values())) == max(depths.values()) >= 7
