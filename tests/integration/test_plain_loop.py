"""Comparison of a run in two stages with a plain torch loop.

The loop implements the documented behaviour of the second stage: parameters that keep training keep
their momentum, one_cycle is ``OneCycleLR`` with ``cycle_momentum=False``, and weights and norm
statistics start as the first stage left them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_files import tensors_of
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchvision.transforms import v2

from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.core.seeding import seed_for
from finetune.models.build import build_untrained, resolve_model

SIZE = 64
HEAD_EPOCHS, EPOCHS = 3, 5
HEAD_LR, LR = 0.05, 2e-3
LAYERS = {"resnet18": ("layer4", "fc"), "convnext_tiny": ("features.7", "classifier.2")}
"""The block and the head, which the second stage trains."""


def draw(folder: Path) -> Path:
    """Two classes in the network's own size, so that no resampling is part of the comparison."""
    draws = random.Random(0)
    for split, count in (("train", 8), ("val", 2)):
        for label in range(2):
            place = folder / split / f"class_{label}"
            place.mkdir(parents=True)
            for index in range(count):
                colors = [draws.randrange(256) for _ in range(3 * 64)]
                colors[label::3] = [min(255, color + 80) for color in colors[label::3]]
                image = Image.frombytes("RGB", (8, 8), bytes(colors))
                image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{index}.png")
    return folder


def config_of(name: str, photos: Path, output: Path) -> Config:
    """All images in one batch: their order is no part of the comparison."""
    return Config.model_validate(
        {
            "model": {
                "name": name,
                "weights": "none",
                "preprocessing": {"resize": SIZE, "crop": SIZE},
            },
            "data": {"root": str(photos), "batch_size": 16, "workers": 0},
            "augment": {"policy": "none"},
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "runtime": {
                "precision": "float32",
                "memory_format": "contiguous",
                "live_precision": "float32",
                "live_memory_format": "contiguous",
                "compile": "off",
            },
            "stages": [
                {
                    "epochs": HEAD_EPOCHS,
                    "freeze": {"patterns": ["*"]},
                    "optimizer": {"lr": HEAD_LR},
                    "schedule": {"name": "cosine", "warmup_epochs": 0},
                },
                {
                    "epochs": EPOCHS,
                    "freeze": {"patterns": ["*", f"!{LAYERS[name][0]}.*"]},
                    "optimizer": {"lr": LR},
                    "schedule": {"name": "one_cycle"},
                },
            ],
            "output_dir": str(output),
        }
    )


def plain_loop(
    config: Config, photos: Path, *, carried: bool = True, cycle_momentum: bool = False
) -> dict[str, Tensor]:
    """The same training as a loop over all images, written out."""
    paths = sorted((photos / "train").glob("*/*.png"))
    read = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = torch.stack([read(Image.open(path)) for path in paths])
    labels = torch.tensor([int(path.parent.name[-1]) for path in paths])
    name = config.model.name
    model = build_untrained(resolve_model(config.model), 2, seed=config.seed)
    block, head = (model.get_submodule(path) for path in LAYERS[name])
    optimizer: Any = None

    def steps(
        parameters: list[nn.Parameter],
        lr: float,
        number: int,
        seed: int,
        schedule_of: Callable[[Any], LRScheduler],
    ) -> None:
        nonlocal optimizer
        before = optimizer
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        if before is not None and carried:
            for parameter, state in before.state.items():
                optimizer.state[parameter] = dict(state)
        schedule = schedule_of(optimizer)
        for step in range(number):
            torch.manual_seed(seed_for(seed, "step", step))  # stochastic depth draws
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if step + 1 < number:
                schedule.step()

    model.eval().requires_grad_(False)
    head.train().requires_grad_(True)
    steps(
        list(head.parameters()),
        HEAD_LR,
        HEAD_EPOCHS,
        config.seed,
        lambda one: CosineAnnealingLR(one, HEAD_EPOCHS),
    )
    block.train().requires_grad_(True)
    steps(
        [*block.parameters(), *head.parameters()],
        LR,
        EPOCHS,
        seed_for(config.seed, "stage", 1),
        lambda one: OneCycleLR(
            one, LR, total_steps=EPOCHS, pct_start=0.3, cycle_momentum=cycle_momentum
        ),
    )
    return {key: value.detach() for key, value in model.state_dict().items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor], config: Config) -> float:
    """How far apart the trained parameters are, as a share of how far training moved them."""
    first = build_untrained(resolve_model(config.model), 2, seed=config.seed).state_dict()
    layers = tuple(f"{path}." for path in LAYERS[config.model.name])
    names = [n for n in first if n.startswith(layers) and n.endswith(("weight", "bias"))]
    moved = sum(float((other[n] - first[n]).square().sum()) for n in names)
    return float((sum(float((one[n] - other[n]).square().sum()) for n in names) / moved) ** 0.5)


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("convnext_tiny", marks=pytest.mark.slow)]
)
def test_a_second_stage_with_sgd_and_one_cycle_is_the_plain_loop(name: str, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos")
    config = config_of(name, photos, tmp_path / "run")
    train(config)
    ours = tensors_of(tmp_path / "run" / "last.pt")
    gap = distance(ours, plain_loop(config, photos), config)
    fresh = distance(ours, plain_loop(config, photos, carried=False), config)
    cycled = distance(ours, plain_loop(config, photos, cycle_momentum=True), config)
    assert gap < 0.1 * min(fresh, cycled)
