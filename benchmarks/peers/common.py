"""Arguments, data, weights, timing and output shared by the programs in this folder.

Each program trains as users of its library would; shared is only what makes the results comparable.
A program prints one JSON document on stdout; the output of its library goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH_SIZE = 32
WORKERS = 2


@dataclass
class Epochs:
    """Splits the time since its making into training and evaluation, leaving no gap out.

    Opening the loaders, callbacks and progress bars belong to the epoch in which they happen; what
    a library does before the first batch belongs to the first epoch.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    _mark: float = field(default_factory=time.perf_counter)
    _train_s: float = 0.0

    def trained(self) -> None:
        """Record the end of an epoch's training."""
        self._train_s = self._lap()

    def evaluated(self, top1: float) -> None:
        """Record the end of an epoch's evaluation."""
        self.records.append({"train_s": self._train_s, "eval_s": self._lap(), "top1": top1})

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


FREEZE_NORMS = {
    "action": "store_true",
    "help": "also freeze the norm layers, so that only the head is trained",
}


def arguments(description: str | None, **extra: dict[str, object]) -> argparse.Namespace:
    """Parse the options shared by all programs, and those given by name."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument(
        "--weights", type=Path, help="torchvision state dict (default: random weights)"
    )
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", type=float, default=0.01)
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)  # type: ignore[arg-type]
    return parser.parse_args()


def image_folders(
    data: Path, augment: str = "crop_flip", size: int = 224
) -> dict[str, datasets.ImageFolder]:
    """Training and validation images; ``augment`` is crop_flip, flip or none.

    Another size than 224 is for photos as small as that: nothing is cut off.
    """
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    resize = 256 if size == 224 else size
    centre = [transforms.Resize(resize), transforms.CenterCrop(size)]
    flip = transforms.RandomHorizontalFlip()
    steps = {
        "crop_flip": [transforms.RandomResizedCrop(size), flip],
        "flip": [*centre, flip],
        "none": centre,
    }
    return {
        "train": datasets.ImageFolder(
            str(data / "train"), transforms.Compose([*steps[augment], *tail])
        ),
        "val": datasets.ImageFolder(str(data / "val"), transforms.Compose([*centre, *tail])),
    }


def network(weights: Path | None, name: str = "mobilenet_v2") -> nn.Module:
    """Return torchvision's network with its original last layer."""
    model = models.get_model(name)
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def new_head(model: nn.Module, num_classes: int) -> nn.Linear:
    """Replace the last layer of MobileNetV2 or a ResNet, and return the new one."""
    if isinstance(model, models.MobileNetV2):
        model.classifier[1] = nn.Linear(model.last_channel, num_classes)
        return model.classifier[1]
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model.fc


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU, as tutorials do."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def report(train: Callable[[Epochs], str]) -> None:
    """Run ``train``, which records epochs and returns the augmentation; print the results."""
    epochs = Epochs()
    with contextlib.redirect_stdout(sys.stderr):
        augmentation = train(epochs)
    print(json.dumps({"augmentation": augmentation, "epochs": epochs.records}))
