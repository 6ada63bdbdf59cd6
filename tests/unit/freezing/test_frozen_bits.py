"""Tests that frozen parameters and buffers do not change, in families with norm layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.builders import small_config
from helpers.counting import Count
from torch import nn
from torchvision import models

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.model_registry import BUILDERS, family_of
from finetune.config.schema import Config
from finetune.core.files import sha256_of
from finetune.freezing.frozen_hashes import hash_frozen
from finetune.freezing.plan import apply_freeze, make_plan
from finetune.freezing.train_mode import set_train_mode
from finetune.models.blocks import blocks_of, last_block
from finetune.models.build import build_skeleton, build_untrained, resolve_model
from finetune.models.norm_layers import norm_layers
from finetune.models.pretrained import load_pretrained
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.lr_schedulers import build_schedule
from finetune.training.optimizers import build_optimizer
from finetune.training.step import Batch, StepConfig

Make = Callable[..., Config]
_SLOW_FROM = 26_000_000


def parameters_of(name: str) -> int:
    number: int = next(iter(models.get_model_weights(name))).meta["num_params"]
    return number


def smallest_with_norms() -> list[str]:
    """Return the smallest builder with norm layers of each family."""
    smallest: dict[str, str] = {}
    for name in sorted(BUILDERS, key=parameters_of):
        family = family_of(name).name
        if family in smallest:
            continue
        skeleton = build_skeleton(resolve_model(small_config(name).model), 3)
        if any(True for _ in norm_layers(skeleton)):
            smallest[family] = name
    return sorted(smallest.values())


FAMILIES = smallest_with_norms()


def train_on(model: nn.Module, config: Config, batch: Batch, epochs: int) -> None:
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    schedule = build_schedule(optimizer, config.schedule, epochs=epochs, steps_per_epoch=1)
    for _ in train_epochs(
        LoopState(model, optimizer, schedule, num_classes=3),
        lambda _: [batch],
        epochs=epochs,
        step=StepConfig(seed=0),
        callbacks=Callbacks(lambda: set_train_mode(model)),
    ):
        evaluate(model, [batch], num_classes=3)  # in between, as a run does: it changes modes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if parameters_of(name) > _SLOW_FROM else name
        for name in FAMILIES
    ],
)
def test_frozen_bits_stay_where_the_last_block_trains(name: str, count: Count) -> None:
    config = small_config(name)
    skeleton = build_skeleton(resolve_model(config.model), 3)
    sizes = [(key, p.numel()) for key, p in skeleton.named_parameters()]
    heads = tuple(f"{head}." for head in resolve_model(config.model).heads)
    block = last_block(blocks_of([pair for pair in sizes if not pair[0].startswith(heads)]))
    patterns = ["*", *(f"!{part.pattern}" for part in block)]
    config = config.with_values({"freeze.patterns": patterns})
    plan = make_plan(config, 3)
    model = build_untrained(plan.spec, 3, seed=0)
    apply_freeze(model, plan.freeze.frozen)
    frozen_hashes = hash_frozen(model)
    crop = plan.spec.preprocessing.crop
    batch = ((torch.rand(3, 3, crop, crop),), torch.tensor([0, 1, 2]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_on(model, config, batch, 2)
    after = model.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    held = not changed & frozen_hashes.sha256.keys()
    count("frozen-bits", tried=frozen_hashes.count, held=frozen_hashes.count if held else 0)
    assert held, changed & frozen_hashes.sha256.keys()
    assert frozen_hashes.verify(after, where=name) == frozen_hashes.count > 0
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    assert changed & trains  # else nothing was tried

    again = {key: value.clone() for key, value in after.items()}
    evaluate(model, [batch], num_classes=3)
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def trained(config: Config) -> None:
    train(config)


def evaluated(config: Config) -> None:
    train(config)
    evaluate_checkpoint(Path(config.output_dir) / "best.pt")


# What else may lead from the weights at the start to a checkpoint: resuming, a change of stage.
PASSAGES = [trained, evaluated]


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("patterns", [["*"], ["*", "!conv5.*"]])
def test_frozen_bits_on_disk_are_those_that_were_loaded(
    make_config: Make,
    passage: Callable[[Config], None],
    patterns: list[str],
    count: Count,
) -> None:
    config = make_config(freeze={"patterns": patterns}, model={"weights": "bundled"})
    plan = make_plan(config, 2)
    model = build_untrained(plan.spec, 2, seed=config.seed)
    load_pretrained(model, plan.spec)
    apply_freeze(model, plan.freeze.frozen)
    frozen_hashes = hash_frozen(model)
    passage(config)
    held = 0
    for name in ("best.pt", "last.pt"):
        state, _ = load_checkpoint(Path(config.output_dir) / name)
        held += frozen_hashes.verify(state, where=name)
    count("frozen-bits", tried=2 * frozen_hashes.count, held=held)
    assert held == 2 * frozen_hashes.count


def test_reading_a_run_changes_no_byte_of_it(make_config: Make) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    files = [Path(config.output_dir) / name for name in ("best.pt", "last.pt", "config.yaml")]
    before = [sha256_of(path) for path in files]
    evaluate_checkpoint(files[0])
    assert [sha256_of(path) for path in files] == before
