"""Tests of `recipe`: the expansion for every network, and conflicts with other keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import fails
from pydantic import ValidationError
from torch import nn

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.dry_run import dry_run
from finetune.commands.freeze_report import freeze_report
from finetune.commands.train import train
from finetune.config.load import load_config
from finetune.config.model_registry import BUILDERS, family_of
from finetune.config.schema import Config, ModelConfig
from finetune.config.stages import stage_configs
from finetune.freezing.patterns import FreezePlan, plan_freeze
from finetune.models.blocks import units_of
from finetune.models.build import build_skeleton, resolve_model
from finetune.models.norm_layers import NORMS
from finetune.recipes.named import Anatomy, expand_recipe, globs_for, patterns_for
from finetune.results.freeze import FreezeReport

Make = Callable[..., Config]

WITHOUT_NORMS = {"alexnet", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg13", "vgg16", "vgg19"}
BLOCKS = {
    "alexnet": {"Conv2d", "Linear"},
    "vgg": {"Conv2d", "BatchNorm2d", "Linear"},
    "resnet": {"BasicBlock", "Bottleneck"},
    "regnet": {"ResBottleneckBlock"},
    "shufflenet_v2": {"InvertedResidual"},
    "googlenet": {"Inception"},
    "inception_v3": {f"Inception{letter}" for letter in "ABCDE"},
    "densenet": {"_DenseBlock"},
    "squeezenet": {"Conv2d", "Fire"},
    "mobilenet_v2": {"Conv2dNormActivation", "InvertedResidual"},
    "mobilenet_v3": {"Conv2dNormActivation", "InvertedResidual"},
    "mnasnet": {"_InvertedResidual"},
    "efficientnet": {"MBConv", "FusedMBConv"},
    "convnext": {"CNBlock"},
    "vit": {"EncoderBlock"},
    "swin": {"SwinTransformerBlock"},
    "swin_v2": {"SwinTransformerBlockV2"},
    "maxvit": {"MaxVitLayer"},
}
"""What torchvision calls the blocks of each family."""

LAST = {
    "alexnet": "classifier.4.*",
    "vgg16_bn": "classifier.3.*",
    "resnet18": "layer4.1.*",
    "resnet101": "layer4.2.*",
    "regnet_y_400mf": "trunk_output.block4.block4-5.*",
    "shufflenet_v2_x0_5": "conv5.*",
    "googlenet": "inception5b.*",
    "inception_v3": "Mixed_7c.*",
    "densenet121": "features.denseblock4.* features.norm5.*",
    "squeezenet1_1": "features.12.*",
    "mobilenet_v2": "features.18.*",
    "mobilenet_v3_small": "classifier.*",
    "mnasnet1_0": "layers.14.* layers.15.*",
    "efficientnet_b0": "features.8.*",
    "efficientnet_v2_s": "features.6.14.* features.7.*",
    "convnext_base": "features.7.2.* classifier.*",
    "vit_l_16": "encoder.layers.encoder_layer_23.* encoder.ln.*",
    "swin_s": "features.7.1.* norm.*",
    "swin_v2_t": "features.7.1.* norm.*",
    "maxvit_t": "blocks.3.layers.1.* classifier.*",
}


@cache
def anatomy_of(name: str, **model: object) -> tuple[Anatomy, nn.Module]:
    spec = resolve_model(ModelConfig(name=name, weights="none", **model))  # type: ignore[arg-type]
    skeleton = build_skeleton(spec, 2)
    return Anatomy.of(skeleton, spec), skeleton


def planned(word: str, anatomy: Anatomy, skeleton: nn.Module) -> FreezePlan:
    names = [name for name, _ in skeleton.named_parameters()]
    head = family_of(anatomy.name).head
    return plan_freeze(names, patterns_for(word, anatomy), heads=[head])


@pytest.mark.parametrize("name", BUILDERS)
def test_every_word_trains_in_every_network_what_it_says(name: str) -> None:
    """Names and sizes alone: nothing is computed, so that all 80 take seconds."""
    anatomy, skeleton = anatomy_of(name)
    head = f"{family_of(name).head}."
    every = {key for key, _ in skeleton.named_parameters() if not key.startswith(head)}
    norms = {
        f"{path}.{key}"
        for path, module in skeleton.named_modules()
        if isinstance(module, NORMS)
        for key, _ in module.named_parameters(recurse=False)
    }
    expected = {
        "linear_probe": set(),
        "full": every,
        "bias_only": {key for key in every if key.split(".")[-1] in ("bias", "in_proj_bias")},
        "norm_only": norms,
    }
    if name in WITHOUT_NORMS:
        assert not expected.pop("norm_only")
        with fails("config.recipe_does_not_fit", key="recipe"):
            patterns_for("norm_only", anatomy)
    for word, trains in expected.items():
        plan = planned(word, anatomy, skeleton)
        assert every - plan.frozen == trains, word
        assert not plan.warnings
        assert len(plan.matches) <= 20


@pytest.mark.parametrize("name", BUILDERS)
def test_the_last_block_is_an_end_of_whole_blocks_of_the_family(name: str) -> None:
    anatomy, skeleton = anatomy_of(name)
    family = family_of(name)
    units = units_of(anatomy.parameters, family.block)
    assert sum(unit.parameters for unit in units) == sum(size for _, size in anatomy.parameters)
    repeated = [unit.name for unit in units if re.match(family.block, f"{unit.name}.block")]
    kinds = {type(skeleton.get_submodule(path)).__name__ for path in repeated}
    assert kinds <= BLOCKS[family.name]
    assert len(repeated) >= 4
    last = anatomy.last_block
    assert units[-len(last) :] == last
    assert sum(1 for block in last if block.name in repeated) <= 1
    share = sum(block.parameters for block in last) / sum(unit.parameters for unit in units)
    assert 0.03 <= share < 0.6
    plan = planned("last_block", anatomy, skeleton)
    head = f"{family.head}."
    trains = {d.name for d in plan.decisions if not d.frozen and not d.name.startswith(head)}
    inside = tuple(f"{block.name}." for block in last)
    assert trains == {key for key, _ in anatomy.parameters if key.startswith(inside)}
    assert not plan.warnings


def test_the_table_of_last_blocks_names_every_family() -> None:
    assert {family_of(name).name for name in LAST} == BLOCKS.keys()


@pytest.mark.parametrize("name", LAST)
def test_the_last_block_of_a_family_is_the_known_one(name: str) -> None:
    patterns = patterns_for("last_block", anatomy_of(name)[0])
    assert patterns == ("*", *(f"!{glob}" for glob in LAST[name].split()))


@pytest.mark.parametrize(
    ("name", "last"), [("googlenet", "inception5b.*"), ("inception_v3", "Mixed_7c.*")]
)
def test_an_auxiliary_branch_is_not_the_last_block(name: str, last: str) -> None:
    anatomy, skeleton = anatomy_of(name, aux_heads=True)
    assert patterns_for("last_block", anatomy) == ("*", f"!{last}")
    assert patterns_for("norm_only", anatomy) == ("*", "!*.bn.*")
    assert any("aux" in key.lower() for key, _ in skeleton.named_parameters())


def test_globs_take_what_they_should_and_nothing_else() -> None:
    modules = ["a.1.norm", "a.2.norm", "b.norm", "c.4"]
    others = ["b.norm2.weight", "x.c.4.weight", "a.1.conv.weight", "d.b.norm.weight"]
    globs = globs_for(modules, others)
    for path in modules:
        assert any(fnmatchcase(f"{path}.bias", glob) for glob in globs)
    for name in others:
        assert not any(fnmatchcase(name, glob) for glob in globs)
    assert "c.4.*" in globs


# In a config


def test_a_recipe_trains_as_the_patterns_that_it_stands_for(
    make_config: Make, tmp_path: Path
) -> None:
    word = make_config(recipe="last_block", train={"epochs": 1})
    train(word)
    saved = load_config(Path(word.output_dir) / "config.yaml")
    assert (saved.recipe, saved.freeze.patterns) == (None, ("*", "!conv5.*"))
    again = saved.model_copy(update={"output_dir": str(tmp_path / "again")})
    train(again)
    states = [load_checkpoint(Path(c.output_dir) / "last.pt")[0] for c in (word, again)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_head_then_all_divides_the_epochs_and_lowers_the_learning_rate(make_config: Make) -> None:
    config = make_config(recipe="head_then_all", train={"epochs": 10}, optimizer={"lr": 0.1})
    head, everything = expand_recipe(config, num_train=18).stages
    assert (head.epochs, everything.epochs) == (2, 8)
    assert (head.freeze.patterns, everything.freeze.patterns) == (("*",), ())
    assert (head.optimizer.lr, everything.optimizer.lr) == (0.1, 0.05)
    assert (head.schedule.warmup_epochs, everything.schedule.warmup_epochs) == ("auto", "auto")
    assert everything.optimizer.momentum == config.optimizer.momentum


def test_head_then_all_keeps_a_warmup_that_was_given(make_config: Make) -> None:
    config = make_config(recipe="head_then_all", train={"epochs": 5}, schedule={"warmup_epochs": 5})
    assert [one.schedule.warmup_epochs for one in expand_recipe(config, num_train=18).stages] == [
        0,
        4,
    ]


def test_head_then_all_lowers_it_more_for_adamw(make_config: Make) -> None:
    config = make_config(recipe="head_then_all", optimizer={"name": "adamw", "lr": 0.001})
    assert [one.optimizer.lr for one in expand_recipe(config, num_train=18).stages] == [
        0.001,
        5e-05,
    ]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "auto"),
        ({"weight_decay": 0.1}, "auto"),
        ({"lr": "auto", "layer_decay": 0.8}, "auto"),
        ({"name": "sgd"}, "sgd"),
        ({"lr": 0.01}, "sgd"),
        ({"momentum": 0.5}, "sgd"),
        ({"groups": [{"match": ["conv1.*"], "lr": 0.001}]}, "sgd"),
        ({"groups": [{"match": ["conv1.*"], "lr_scale": 0.1}]}, "auto"),
        ({"options": {"nesterov": True}}, "sgd"),
    ],
)
def test_the_optimizer_is_chosen_unless_what_is_given_belongs_to_one(
    make_config: Make, given: dict[str, Any], name: str
) -> None:
    for recipe in ("full", "last_block"):
        config = make_config(recipe=recipe, optimizer=given)
        assert expand_recipe(config, num_train=18).optimizer.name == name
    config = make_config(recipe="head_then_all", train={"epochs": 10}, optimizer=given)
    stages = stage_configs(expand_recipe(config, num_train=18))
    assert [one.optimizer.name for one in stages] == [name, name]


def test_head_then_all_of_one_epoch_is_refused(make_config: Make) -> None:
    with fails("config.recipe_does_not_fit", key="recipe"):
        expand_recipe(make_config(recipe="head_then_all", train={"epochs": 1}), num_train=18)


def test_a_dry_run_shows_what_a_recipe_stands_for(make_config: Make) -> None:
    result = dry_run(make_config(recipe="norm_only"))
    assert "recipe" not in result.config
    assert result.config["freeze"]["patterns"][:2] == ["*", "!*.branch2.1.*"]


def test_a_freeze_report_shows_what_a_recipe_stands_for(make_config: Make) -> None:
    result = freeze_report(make_config(recipe="bias_only"), num_classes=2)
    assert isinstance(result, FreezeReport)
    assert [row.pattern for row in result.patterns] == ["*", "!*bias"]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"freeze": {"patterns": ["*"]}}, "recipe: full .*remove recipe or freeze.patterns"),
        (
            {"stages": [{}]},
            "recipe: full .*remove recipe or stages",
        ),
    ],
)
def test_a_recipe_beside_what_it_would_overrule_is_refused(
    make_config: Make, sections: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        make_config(recipe="full", **sections)


def test_a_recipe_leaves_the_statistics_of_norms_to_the_config(make_config: Make) -> None:
    config = expand_recipe(
        make_config(recipe="linear_probe", freeze={"norm_stats": "update"}), num_train=18
    )
    assert (config.freeze.patterns, config.freeze.norm_stats) == (("*",), "update")


def test_an_unknown_recipe_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: resnet18}\ndata: {root: x}\nrecipe: last_blok\n")
    with fails("config.invalid_value", key="recipe"):
        load_config(path)
