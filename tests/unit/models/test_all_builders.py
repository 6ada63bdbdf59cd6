"""Tests with every torchvision classification builder, on small inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.builders import is_heavy, small_config
from helpers.small_checkpoint import resolved_for_tests
from torch import nn
from torchvision import models

from finetune.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from finetune.config.model_registry import BUILDERS
from finetune.config.schema import Config
from finetune.config.stages import RunConfig
from finetune.data.images import Images, TrainVal
from finetune.freezing.frozen_hashes import hash_frozen
from finetune.freezing.plan import apply_freeze, make_plan
from finetune.freezing.train_mode import set_train_mode
from finetune.inference.load import load_network
from finetune.models.build import build_skeleton, build_untrained, check_input_size, resolve_model
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.lr_schedulers import build_schedule
from finetune.training.optimizers import build_optimizer
from finetune.training.prepare_stage import StageSetup
from finetune.training.state import metadata_of
from finetune.training.step import StepConfig


def test_the_table_holds_exactly_torchvisions_classification_builders() -> None:
    assert set(BUILDERS) == set(models.list_models(module=models))


@pytest.mark.parametrize("name", BUILDERS)
def test_only_the_head_depends_on_the_number_of_classes(name: str) -> None:
    """The head is where the table says, for the weights' own categories and for others."""
    spec = resolve_model(small_config(name).model)
    categories = next(
        len(entry.meta["categories"])
        for entry in models.get_model_weights(name)
        if entry.meta["categories"]
    )
    shapes = [
        {key: tuple(p.shape) for key, p in build_skeleton(spec, n).named_parameters()}
        for n in (categories, 7)
    ]
    changed = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    head = spec.family.head
    assert changed
    assert changed == {key for key in shapes[0] if key.startswith(f"{head}.")}
    assert shapes[0][f"{head}.weight"][0] == categories


@pytest.mark.parametrize("name", BUILDERS)
def test_a_published_input_size_is_accepted(name: str) -> None:
    spec = resolve_model(
        Config.model_validate(
            {"model": {"name": name}, "data": {"root": "x"}, "output_dir": "x"}
        ).model
    )
    skeleton = build_skeleton(spec, 3)
    skeleton.eval()
    check_input_size(skeleton, spec, batch_size=1)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if is_heavy(n) else n for n in BUILDERS],
)
def test_freeze_step_save_load_evaluate(name: str, tmp_path: Path) -> None:
    config = small_config(name)
    plan = make_plan(config, 3)
    check_input_size(plan.skeleton, plan.spec, batch_size=2)
    model = build_untrained(plan.spec, 3, seed=0)
    apply_freeze(model, plan.freeze.frozen)
    frozen_hashes = hash_frozen(model)
    crop = plan.spec.preprocessing.crop
    batch = ((torch.rand(3, 3, crop, crop),), torch.tensor([0, 1, 2]))
    head = {f"{plan.spec.family.head}.{key}" for key in ("weight", "bias")}
    before = {key: value.clone() for key, value in model.state_dict().items() if key in head}
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    schedule = build_schedule(optimizer, config.schedule, epochs=1, steps_per_epoch=1)
    (_,) = train_epochs(
        LoopState(model, optimizer, schedule, num_classes=3),
        lambda _: [batch],
        epochs=1,
        step=StepConfig(seed=0),
        callbacks=Callbacks(lambda: set_train_mode(model)),
    )
    evaluation = evaluate(model, [batch], num_classes=3)
    images = Images((), (), ("a", "b", "c"))
    resolved = resolved_for_tests(config, plan)
    engine: Any = None  # the checkpoint does not depend on it
    stage_setup = StageSetup(
        config=resolved,
        run_config=RunConfig(config, (resolved,)),
        data=TrainVal(images, images, ()),
        plan=plan,
        model=model,
        engine=engine,
        frozen_hashes=frozen_hashes,
        threads=1,
    )
    path = tmp_path / "best.pt"
    save_checkpoint(
        path, model.state_dict(), metadata_of(stage_setup, stage=0, epoch=1, metrics={})
    )

    state, metadata = load_checkpoint(path)
    path.unlink()
    assert frozen_hashes.verify(state, where=name) == frozen_hashes.count > 0
    # The bias may move alone: an untrained efficientnet's features vanish.
    assert any(not torch.equal(state[key], value) for key, value in before.items())
    again = evaluate(load_network(path, state, metadata), [batch], num_classes=3)
    assert (again.top1, again.loss) == (evaluation.top1, evaluation.loss)


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "googlenet", "inception_v3", "vit_b_32", "maxvit_t"]
)
def test_model_entry_loads_straight_into_torchvision(name: str, tmp_path: Path) -> None:
    config = small_config(name)
    plan = make_plan(config, 3)
    model = build_untrained(plan.spec, 3, seed=0)
    torch.save({"model": model.state_dict()}, tmp_path / "m.pt")
    flags = json.loads(json.dumps(plan.spec.build_flags))
    other = getattr(models, name)(num_classes=3, **flags)
    other.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True)["model"])
    crop = plan.spec.preprocessing.crop
    images = torch.rand(2, 3, crop, crop)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), other.eval()(images))


@pytest.mark.parametrize(
    ("name", "kind", "bias"),
    [
        ("squeezenet1_0", nn.Conv2d, True),
        ("maxvit_t", nn.Linear, False),
        ("vit_b_16", nn.Linear, True),
    ],
)
def test_the_new_head_stays_of_its_kind(name: str, kind: type[nn.Module], bias: bool) -> None:
    spec = resolve_model(small_config(name).model)
    head = build_skeleton(spec, 5).get_submodule(spec.family.head)
    assert isinstance(head, kind)
    assert (head.bias is not None) == bias


def test_the_new_head_is_initialised_as_the_family_does_it() -> None:
    def head_of(name: str) -> nn.Module:
        spec = resolve_model(small_config(name).model)
        return build_untrained(spec, 5, seed=0).get_submodule(spec.family.head)

    assert not head_of("vit_b_32").weight.any()
    assert 0.008 < float(head_of("mobilenet_v2").weight.detach().std()) < 0.012
    assert not head_of("mobilenet_v2").bias.any()


@pytest.mark.parametrize(("name", "aux"), [("inception_v3", 1), ("googlenet", 2)])
def test_auxiliary_heads_are_dropped_unless_asked_for(name: str, aux: int) -> None:
    without = make_plan(small_config(name), 3)
    kept = make_plan(small_config(name, aux_heads=True), 3)
    assert not any("aux" in d.name.lower() for d in without.freeze.decisions)
    trainable = {n for n, p in kept.skeleton.named_parameters() if p.requires_grad}
    heads = {key.rpartition(".")[0] for key in trainable}
    assert heads == {kept.spec.family.head, *kept.spec.family.aux_heads}
    assert len(kept.spec.family.aux_heads) == aux


@pytest.mark.parametrize(("name", "crop"), [("inception_v3", 299), ("googlenet", 64)])
def test_auxiliary_heads_train_when_asked_for(name: str, crop: int) -> None:
    config = small_config(name, aux_heads=True, preprocessing={"resize": crop, "crop": crop})
    plan = make_plan(config, 3)
    model = build_untrained(plan.spec, 3, seed=0)
    apply_freeze(model, plan.freeze.frozen)
    aux = model.get_submodule(plan.spec.family.aux_heads[0]).weight
    before = aux.detach().clone()
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    schedule = build_schedule(optimizer, config.schedule, epochs=1, steps_per_epoch=1)
    list(
        train_epochs(
            LoopState(model, optimizer, schedule, num_classes=3),
            lambda _: [((torch.rand(3, 3, crop, crop),), torch.tensor([0, 1, 2]))],
            epochs=1,
            step=StepConfig(seed=0),
            loss=LossConfig(aux_weight=plan.spec.family.aux_weight),
            callbacks=Callbacks(lambda: set_train_mode(model)),
        )
    )
    assert not torch.equal(aux, before)
