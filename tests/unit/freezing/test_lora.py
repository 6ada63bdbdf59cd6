"""Tests of LoRA: supported modules, trainable parameters, merging into plain weights."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import fails
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.freeze_report import freeze_report
from finetune.commands.train import train
from finetune.config.schema import AdaptConfig, Config, ModelConfig
from finetune.core.errors import ModelError
from finetune.freezing.graph_split import find_split_point, split_model
from finetune.freezing.lora import (
    adaptable,
    adapters_of,
    attach,
    merged,
    named_plainly,
    named_trainable,
    plain_state,
    plan_adapters,
)
from finetune.freezing.plan import apply_freeze, make_plan
from finetune.models.build import build_skeleton, resolve_model
from finetune.recipes.named import expand_recipe
from finetune.report.freeze_report import render_freeze_report
from finetune.report.layout import plain
from finetune.report.train import render_train

Make = Callable[..., Config]
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: the extra `adapt`"
)

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lora(**values: Any) -> AdaptConfig:
    return AdaptConfig.model_validate({"lora": {"rank": 2, **values}})


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=3,
    )
    nn.init.normal_(model.heads.head.weight)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    return model


def targets_of(model: nn.Module, adapt: AdaptConfig) -> dict[str, int]:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    skeleton = small_vit().to("meta")
    return plan_adapters(adapt, skeleton, 32, frozen=frozen, heads=("heads.head",))


def adapted_vit(**values: Any) -> VisionTransformer:
    """A small vision transformer whose adapters have learned something."""
    model = small_vit()
    adapt = lora(**values)
    attach(model, adapt.lora, tuple(targets_of(model, adapt)), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in named_trainable(model):
        if name.endswith("lora_B"):
            parameter.data.normal_(generator=generator)
    return model.eval()


# What can have an adapter


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        (
            "vit_b_16",
            {"self_attention.in_proj_weight", "mlp.0.weight", "mlp.3.weight"},
            {"self_attention.out_proj.weight"},
        ),
        ("swin_t", {"mlp.0.weight", "mlp.3.weight"}, {"attn.qkv.weight", "attn.proj.weight"}),
        ("swin_v2_t", {"mlp.0.weight", "mlp.3.weight"}, {"attn.qkv.weight"}),
        ("maxvit_t", {"to_qkv.weight", "merge.weight"}, set()),
    ],
)
def test_what_is_called_as_a_module_can_have_an_adapter(
    name: str, yes: set[str], no: set[str]
) -> None:
    spec = resolve_model(ModelConfig(name=name))
    found = adaptable(build_skeleton(spec, 3), spec.preprocessing.crop)
    for end in yes:
        assert any(one.endswith(end) for one in found), end
    for end in no:
        assert not any(one.endswith(end) for one in found), end


def test_targets_are_the_frozen_weights_that_globs_match() -> None:
    model = small_vit()
    blocks = "encoder.layers.encoder_layer_"
    assert targets_of(model, lora()) == {
        f"{blocks}{block}.{weight}": size
        for block in (0, 1)
        for weight, size in (
            ("self_attention.in_proj_weight", 2 * (48 + 16)),
            ("mlp.0.weight", 2 * (16 + 32)),
            ("mlp.3.weight", 2 * (16 + 32)),
        )
    }
    some = targets_of(model, lora(targets=["*.encoder_layer_1.*", "*_0.mlp.0.*"]))
    assert [name.removeprefix(blocks) for name in some] == [
        *("0.mlp.0.weight", "1.self_attention.in_proj_weight", "1.mlp.0.weight", "1.mlp.3.weight")
    ]


def test_adapters_where_nothing_is_frozen_are_refused() -> None:
    with fails("config.nothing_to_adapt"):
        targets_of(small_vit().requires_grad_(True), lora())


@pytest.mark.parametrize(
    ("values", "kind", "key"),
    [
        ({"targets": ["encodr.*"]}, "pattern_matches_nothing", "targets"),
        ({"targets": ["*.out_proj.*"]}, "nothing_to_adapt", "targets"),
        ({"targets": ["heads.*"]}, "nothing_to_adapt", "targets"),
        ({"rank": 17}, "invalid_value", "rank"),
        ({"dropout": 0.1}, "conflict", "dropout"),
    ],
)
def test_what_cannot_be_adapted_is_refused(values: dict[str, Any], kind: str, key: str) -> None:
    with fails(f"config.{kind}", key=f"adapt.lora.{key}"):
        targets_of(small_vit(), lora(**values))


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least one glob"):
        lora(targets=[])


def test_other_families_are_refused() -> None:
    with pytest.raises(ValidationError, match="adapt: LoRA supports vit, swin, "):
        config_of("resnet18")


# What peft makes of a network


@needs_peft
def test_an_adapter_adds_nothing_before_it_has_learned() -> None:
    plain = small_vit().eval()
    model = small_vit().eval()
    attach(model, lora().lora, tuple(targets_of(model, lora())), seed=0)
    assert len(adapters_of(model)) == 6
    assert torch.allclose(model(IMAGES), plain(IMAGES), atol=1e-5)


@needs_peft
def test_adapters_and_the_head_alone_train_and_are_named_by_their_weights() -> None:
    model = adapted_vit(targets=["*_1.mlp.0.*"])
    weight = "encoder.layers.encoder_layer_1.mlp.0.weight"
    assert [name for name, _ in named_trainable(model)] == [
        *(f"{weight}.lora_A", f"{weight}.lora_B", "heads.head.weight", "heads.head.bias")
    ]
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for _, p in named_trainable(model))
    trained = {id(p) for _, p in named_trainable(model)}
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)


@needs_peft
def test_what_trains_beside_an_adapter_keeps_its_name() -> None:
    model = small_vit()
    names = [name for name, _ in model.named_parameters()]
    layer = "encoder.layers.encoder_layer_1"
    biases = {f"{layer}.mlp.0.bias", f"{layer}.self_attention.in_proj_bias"}
    for name in biases:
        model.get_parameter(name).requires_grad_(True)
    attach(model, lora().lora, tuple(targets_of(small_vit(), lora())), seed=0)
    assert biases < {name for name, _ in named_trainable(model)}
    assert [name for name, _ in named_plainly(model) if ".lora_" not in name] == names


@needs_peft
@pytest.mark.parametrize("name", ["swin_t", "vit_b_16"])
def test_the_plan_moves_what_the_optimizer_is_given(name: str) -> None:
    """By the same names and shapes, so that a group or a rate that is shown is the one in force."""
    config = config_of(name, recipe="bias_only")
    plan = make_plan(expand_recipe(config, num_train=None), 3)
    model = copy.deepcopy(plan.skeleton)
    apply_freeze(model, plan.frozen)
    assert config.adapt is not None
    attach(model, config.adapt.lora, tuple(plan.adapters), seed=0)
    given = {key: tuple(parameter.shape) for key, parameter in named_trainable(model)}
    assert any(key.endswith("mlp.0.bias") for key in given)
    assert {key: tuple(shape) for key, shape in plan.moving.items()} == given
    assert given.keys() <= plan.depths.keys()


@needs_peft
def test_every_adapter_changes_the_answer() -> None:
    plain = small_vit().eval()(IMAGES)
    for target in targets_of(small_vit(), lora()):
        model = adapted_vit(targets=[target])
        assert not torch.allclose(model(IMAGES), plain, atol=1e-4), target


@needs_peft
def test_merged_is_what_the_adapters_compute_and_leaves_every_bit_as_it_was() -> None:
    model = adapted_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apart = model(IMAGES)
    with merged(model), torch.no_grad():
        together = model(IMAGES)
    assert torch.allclose(apart, together, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IMAGES), apart)


@needs_peft
def test_the_plain_state_loads_into_the_plain_network_and_answers_as_merged() -> None:
    model = adapted_vit()
    with merged(model), torch.no_grad():
        expected = model(IMAGES)
    plain = small_vit().eval()
    state = plain_state(model)
    assert list(state) == list(plain.state_dict())
    targets = targets_of(small_vit(), lora())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], tensor) == (name not in targets), name
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), expected)


@needs_peft
def test_the_split_is_made_before_the_first_adapter_and_computes_the_same() -> None:
    model = adapted_vit(targets=["*.encoder_layer_1.*"])
    skeleton = small_vit().to("meta")
    cut = find_split_point(model, crop=32, skeleton=skeleton)
    assert cut.after is not None
    assert "encoder_layer_1" in cut.after or "encoder_layer_0" in cut.after
    split = split_model(model, crop=32, skeleton=skeleton)
    assert split.prefix is not None
    with torch.no_grad():
        assert torch.allclose(split.trainable_part(*split.prefix(IMAGES)), model(IMAGES), atol=1e-5)


# In a run


def config_of(name: str, **sections: Any) -> Config:
    values = {
        "model": {"name": name, "weights": "none"},
        "data": {"root": "absent"},
        "adapt": {"lora": {"rank": 4}},
        "output_dir": "x",
        **sections,
    }
    return Config.model_validate(values)


def test_the_freeze_report_counts_adapters_and_needs_no_peft() -> None:
    report = freeze_report(config_of("swin_t"), num_classes=3)
    assert report.adapters.weights == 2 * 12 + 3
    assert report.memory.gradient_bytes == 4 * (report.adapters.parameters + 768 * 3 + 3)
    assert sum(row.parameters for row in report.groups) == report.adapters.parameters + 768 * 3 + 3
    text = plain(render_freeze_report(report))
    assert "parameters are trained in addition to 27 frozen weights, and merged" in text
    assert f"{report.adapters.parameters + 768 * 3 + 3:,} trainable" in text.splitlines()[0]


def with_group(**group: Any) -> Config:
    return config_of("swin_t", optimizer={"name": "adamw", "lr": 0.1, "groups": [group]})


def test_a_group_goes_by_the_names_of_adapters() -> None:
    report = freeze_report(with_group(match=["*.lora_B"], lr=0.5), num_classes=3)
    names = {row.lr: row.names for row in report.groups}
    assert len(names[0.5]) == report.adapters.weights
    assert all(name.endswith(".weight.lora_B") for name in names[0.5])


def test_a_group_over_a_weight_that_only_its_adapter_moves_is_refused() -> None:
    config = with_group(match=["*.mlp.0.weight"], lr=0.5)
    with fails("config.no_effect"):
        freeze_report(config, num_classes=3)


def test_a_size_that_does_not_fit_is_answered_as_without_adapters() -> None:
    preprocessing = {"resize": 200, "crop": 200}
    model = {"name": "maxvit_t", "weights": "none", "preprocessing": preprocessing}
    with pytest.raises(ModelError, match="cannot"):
        freeze_report(config_of("maxvit_t", model=model), num_classes=3)


def test_without_peft_a_run_is_refused_with_the_installation(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    config = make_config(model={"name": "swin_t"}, adapt={"lora": {}})
    with fails("config.missing_package", key="adapt.lora"):
        train(config)


@needs_peft
@pytest.mark.slow
def test_a_run_trains_adapters_and_saves_a_plain_torchvision_network(make_config: Make) -> None:
    config = make_config(
        model={"name": "swin_t", "preprocessing": {"resize": 32, "crop": 32}},
        adapt={"lora": {"rank": 2, "targets": ["features.7.*"]}},
        optimizer={"name": "adamw", "lr": 0.01, "layer_decay": 0.9},
        train={"epochs": 1},
    )
    summary = train(config)
    assert (summary.adapted, summary.trainable_tensors) == (4, 10)
    assert "; adapters were merged into the other 4 weights" in plain(render_train(summary))

    state, metadata = load_checkpoint(Path(config.output_dir) / "last.pt")
    models.swin_t(num_classes=2).load_state_dict(state)
    targets = {f"features.7.{block}.mlp.{at}.weight" for block in (0, 1) for at in (0, 3)}
    torch.manual_seed(0)
    before = start_of(make_config, config)
    moved = {name for name in state if not torch.equal(state[name], before[name])}
    assert moved == targets | {"head.weight", "head.bias"}
    assert not targets & set(metadata.freeze_plan.names)

    result = evaluate_checkpoint(Path(config.output_dir) / "last.pt")
    assert (result.top1, result.loss) == (summary.last.top1, summary.last.loss)
    line = json.loads(Path(config.output_dir, "metrics.jsonl").read_text())
    assert line["val"]["loss"] == result.loss


def start_of(make_config: Make, config: Config) -> dict[str, Tensor]:
    """The network as a run of this config begins with it."""
    from finetune.models.build import build_untrained

    spec = resolve_model(config.model)
    return build_untrained(spec, 2, seed=config.seed).state_dict()
