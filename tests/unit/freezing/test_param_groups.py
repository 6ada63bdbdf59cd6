"""Tests of parameter groups: learning rates, weight decay and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import check_error, fails
from pydantic import ValidationError
from torch import nn

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.dry_run import dry_run
from finetune.commands.freeze_report import freeze_report
from finetune.commands.train import train
from finetune.config.schema import Config, ModelConfig, OptimizerConfig
from finetune.core.errors import ConfigError
from finetune.freezing.param_groups import Group, check_groups, decays, plan_groups
from finetune.models.build import build_skeleton, build_untrained, resolve_model
from finetune.models.layer_depths import depths_of
from finetune.report.dry_run import render_dry_run
from finetune.report.freeze_report import render_freeze_report
from finetune.report.layout import document, plain
from finetune.report.param_groups import render_groups
from finetune.training.optimizers import build_optimizer

Make = Callable[..., Config]

SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    "bn1.weight": (8,),
    "bn1.bias": (8,),
    "layer4.conv.weight": (8, 8, 3, 3),
    "layer4.bn.weight": (8,),
    "fc.weight": (2, 8),
    "fc.bias": (2,),
}
DEPTHS = dict(zip(SHAPES, (2, 2, 2, 1, 1, 0, 0), strict=True))


def config_of(**values: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": "adamw", "lr": 1.0, **values})


def movement(
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, **values: Any
) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    groups = plan_groups(config_of(**values), shapes, depths=DEPTHS)
    moved = {n: (group.lr, group.weight_decay) for group in groups for n in group.names}
    assert moved.keys() == shapes.keys()
    assert sum(len(group.names) for group in groups) == len(shapes)
    return moved


def spared_of(name: str) -> set[str]:
    """What weight decay spares of a real network."""
    model = build_skeleton(resolve_model(ModelConfig(name=name)), 3)
    optimizer = build_optimizer(model.named_parameters(), config_of(weight_decay=0.1))
    return {
        parameter
        for group in optimizer.param_groups
        for parameter in group["param_names"]
        if group["weight_decay"] == 0
    }


# What weight decay spares


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "vgg11_bn"]
)
def test_weight_decay_spares_norms_and_biases_and_nothing_else(name: str) -> None:
    model = build_skeleton(resolve_model(ModelConfig(name=name)), 3)
    expected = {
        f"{path}.{key}"
        for path, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
        if isinstance(module, nn.modules.batchnorm._NormBase) or key == "bias"
    }
    assert spared_of(name) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_b_16", {"class_token", "pos_embedding"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("swin_v2_t", {"cpb_mlp", "logit_scale"}),
        ("maxvit_t", {"relative_position_bias_table"}),
        ("convnext_tiny", {"layer_scale"}),
    ],
)
def test_weight_decay_spares_a_transformers_tokens_tables_and_scales(
    name: str, words: set[str]
) -> None:
    """Same exclusions as in timm's and torchvision's training of these families."""
    spared = spared_of(name)
    model = build_skeleton(resolve_model(ModelConfig(name=name)), 3)
    vectors = {n for n, p in model.named_parameters() if p.dim() == 1}
    others = {n for n, _ in model.named_parameters() if words & set(n.split("."))}
    assert others
    assert spared == vectors | others


@pytest.mark.parametrize(("letter", "shape"), [("A", (1, 8)), ("B", (8, 1))])
def test_an_adapter_of_rank_one_decays_as_those_of_any_rank(
    letter: str, shape: tuple[int, ...]
) -> None:
    assert decays(f"mlp.0.weight.lora_{letter}", shape)


def test_decay_on_norms_and_biases_can_be_asked_for() -> None:
    decays = movement(weight_decay=0.1, decay_norms_and_biases=True)
    assert set(decays.values()) == {(1.0, 0.1)}


def test_without_weight_decay_all_move_as_one_group() -> None:
    (group,) = plan_groups(config_of(weight_decay=0.0), SHAPES)
    assert group == Group(1.0, 0.0, tuple(SHAPES))


# Groups


def test_a_group_has_its_own_rate_and_decay() -> None:
    moved = movement(
        weight_decay=0.1,
        groups=[{"match": ["layer4.*"], "lr": 0.5}, {"match": ["fc.*"], "weight_decay": 0.3}],
    )
    assert moved["layer4.conv.weight"] == (0.5, 0.1)
    assert moved["layer4.bn.weight"] == (0.5, 0.0)
    assert moved["fc.weight"] == moved["fc.bias"] == (1.0, 0.3)
    assert moved["conv1.weight"] == (1.0, 0.1)


def test_the_last_group_that_matches_decides() -> None:
    moved = movement(
        weight_decay=0.0,
        groups=[
            {"match": ["*"], "lr_scale": 0.1},
            {"match": ["fc.*", "conv1.*"], "lr_scale": 10.0},
        ],
    )
    assert moved["fc.weight"] == moved["conv1.weight"] == (10.0, 0.0)
    assert moved["layer4.conv.weight"] == (0.1, 0.0)


def test_a_scale_is_of_the_decayed_rate_and_a_rate_replaces_it() -> None:
    moved = movement(
        weight_decay=0.0,
        layer_decay=0.5,
        groups=[{"match": ["conv1.*"], "lr_scale": 2.0}, {"match": ["bn1.*"], "lr": 0.7}],
    )
    assert moved["conv1.weight"] == (2 * 0.25, 0.0)
    assert moved["bn1.weight"] == (0.7, 0.0)
    assert moved["layer4.conv.weight"] == (0.5, 0.0)
    assert moved["fc.weight"] == (1.0, 0.0)


def test_the_heads_group_comes_first_so_that_its_rate_is_the_one_shown() -> None:
    for groups in ([{"match": ["conv1.*"], "lr_scale": 7.0}], [{"match": ["fc.*"], "lr": 9.0}]):
        planned = plan_groups(config_of(groups=groups), SHAPES)
        assert {"fc.weight", "fc.bias"} & set(planned[0].names)


def test_a_step_moves_each_group_by_its_own_rate() -> None:
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    config = OptimizerConfig.model_validate(
        {"lr": 1.0, "momentum": 0.0, "groups": [{"match": ["bias"], "lr_scale": 0.25}]}
    )
    optimizer = build_optimizer(layer.named_parameters(), config)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert layer.weight.unique().tolist() == [-1.0]
    assert layer.bias.unique().tolist() == [-0.25]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"match": []}, "at least one glob"),
        ({"match": [" "], "lr": 0.1}, "glob 1 is empty"),
        ({"match": ["!fc.*"], "lr": 0.1}, "groups do not support"),
        ({"match": ["fc.*"]}, "the group sets nothing"),
        ({"match": ["fc.*"], "lr": 0.1, "lr_scale": 2.0}, "cannot be combined with lr"),
        ({"match": ["fc.*"], "lr": 0.0}, "greater than 0"),
    ],
)
def test_a_group_that_says_nothing_is_refused(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config_of(groups=[group])


# What cannot take effect


def refused(frozen: set[str] = frozenset(), **values: Any) -> ConfigError:  # type: ignore[assignment]
    with pytest.raises(ConfigError) as caught:
        check_groups(config_of(**values), list(SHAPES), frozen, depths=DEPTHS)
    check_error(caught.value)
    return caught.value


def test_a_glob_that_matches_nothing_is_refused_with_the_nearest() -> None:
    error = refused(groups=[{"match": ["fc.*", "layr4.*"], "lr": 0.1}])
    assert error.kind == "config.pattern_matches_nothing"
    assert "Did you mean 'layer4.*'" in (error.to_do or "")


def test_a_glob_over_frozen_parameters_alone_is_refused() -> None:
    error = refused({"conv1.weight"}, groups=[{"match": ["conv1.*"], "lr": 0.1}])
    assert error.kind == "config.no_effect"


def test_a_glob_that_later_groups_overrule_is_refused() -> None:
    groups = [{"match": ["fc.bias", "bn1.*"], "lr": 0.1}, {"match": ["fc.*"], "lr": 0.2}]
    error = refused(groups=groups)
    assert error.kind == "config.no_effect"


def test_all_idle_globs_are_named_at_once() -> None:
    error = refused(groups=[{"match": ["x.*"], "lr": 0.1}, {"match": ["y.*"], "lr": 0.1}])
    assert error.kind == "config.several_problems"


def test_layer_decay_without_a_layer_below_the_head_is_refused() -> None:
    backbone = {name for name in SHAPES if not name.startswith("fc.")}
    assert refused(backbone, layer_decay=0.5).kind == "config.no_effect"
    check_groups(config_of(layer_decay=0.5), list(SHAPES), set(), depths=DEPTHS)


# In a run

THAWED = {"freeze": {"patterns": ["*", "!stage4.*", "!conv5.*"]}}
OWN = {
    "name": "adamw",
    "lr": 0.01,
    "weight_decay": 0.1,
    "layer_decay": 0.5,
    "groups": [{"match": ["stage4.0.*"], "lr": 1e-4, "weight_decay": 0.0}],
}


def test_a_run_moves_its_groups_and_shows_the_heads_rate(make_config: Make) -> None:
    config = make_config(
        **THAWED, optimizer=OWN, schedule={"name": "constant", "warmup_epochs": 0.0}
    )
    train(config)
    first = Path(config.output_dir, "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["lr"] == 0.01
    before = build_untrained(resolve_model(config.model), 2, seed=config.seed).state_dict()
    after, _ = load_checkpoint(Path(config.output_dir, "last.pt"))
    names = [name for name, _ in build_skeleton(resolve_model(config.model), 2).named_parameters()]

    def farthest(start: str) -> float:
        """By AdamW's rule about its rate a step, whatever the gradient."""
        moved = [after[n] - before[n] for n in names if n.startswith(start)]
        return max(float(difference.abs().max()) for difference in moved)

    steps = 2 * 3
    assert 0 < farthest("stage4.0.") < 1.5 * steps * 1e-4
    assert farthest("stage4.1.") > 4 * steps * 1e-4
    assert farthest("fc.") > farthest("conv5.") > farthest("stage4.1.")
    assert farthest("stage3.") == 0


def test_the_groups_are_shown_before_training(make_config: Make) -> None:
    config = make_config(**THAWED, optimizer=OWN)
    rows = freeze_report(config).groups
    assert rows == dry_run(config).groups
    by_name = {name: (row.lr, row.weight_decay) for row in rows for name in row.names}
    assert by_name["fc.weight"] == (0.01, 0.1)
    assert by_name["fc.bias"] == (0.01, 0.0)
    assert by_name["conv5.0.weight"] == (0.005, 0.1)
    assert by_name["stage4.0.branch1.0.weight"] == (1e-4, 0.0)
    assert sum(row.tensors for row in rows) == len(by_name)
    for text in (
        plain(render_freeze_report(freeze_report(config))),
        plain(render_dry_run(dry_run(config))),
    ):
        line = next(line for line in text.splitlines() if "stage4.0.branch1.0.weight" in line)
        assert line.split()[:2] == ["0.0001", "0"]


def test_very_many_groups_are_shown_in_part() -> None:
    model = build_skeleton(resolve_model(ModelConfig(name="convnext_tiny")), 3)
    config = Config.model_validate(
        {
            "model": {"name": "convnext_tiny"},
            "freeze": {"patterns": []},
            "data": {"root": "absent"},
            "optimizer": {"name": "adamw", "layer_decay": 0.8},
            "output_dir": "x",
        }
    )
    rows = freeze_report(config, num_classes=3).groups
    layers = 1 + max(depths_of(model, resolve_model(config.model).family).values())
    assert len(rows) == 2 * layers
    shown = document(render_groups(rows))
    assert "36 more with --verbose" in plain(shown, verbose=False)
    assert len(plain(shown).splitlines()) == 1 + len(rows)


def test_idle_groups_stop_a_run_before_its_data_is_read(make_config: Make) -> None:
    config = make_config(
        data={"root": "absent"}, optimizer={"groups": [{"match": ["nowhere.*"], "lr": 0.1}]}
    )
    with fails("config.pattern_matches_nothing", key="optimizer.groups.0.match"):
        freeze_report(config, num_classes=2)


def test_an_epoch_says_the_highest_of_its_learning_rates(make_config: Make) -> None:
    config = make_config(
        freeze={"patterns": []},
        optimizer={"lr": 0.004, "groups": [{"match": ["fc.*"], "lr": 0.002}]},
        schedule={"name": "constant", "warmup_epochs": 0},
        train={"epochs": 1},
    )
    train(config)
    assert json.loads(Path(config.output_dir, "metrics.jsonl").read_text())["lr"] == 0.004
