"""Pretrain the bundled backbone: shufflenet_v2_x0_5 at 64 px on 95 classes of CIFAR-100.

Usage: python benchmarks/bundled_weights/pretrain.py --output FILE [--data FOLDER]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
EVAL_BATCH_SIZE = 250


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random augmentations; units are documented in pretrain.yaml."""

    zoom: tuple[float, float]
    stretch: float
    shift: float
    rotation_deg: float
    brightness: float
    contrast: float
    saturation: float
    channel_gain: float
    gray_probability: float
    invert_probability: float
    erase_probability: float
    erase_side: tuple[float, float]
    mixup_alpha: float


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one pretraining run."""

    seed: int
    threads: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epochs: int
    batch_size: int
    lr: float
    warmup_epochs: int
    momentum: float
    weight_decay: float
    label_smoothing: float
    eval_every: int
    augment: AugmentConfig


@dataclass(frozen=True)
class Split:
    """A whole split in memory: images ``(N, 3, 32, 32)`` uint8, labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def load_config(path: Path) -> PretrainConfig:
    """Read settings from a YAML file; an unknown or missing key raises TypeError."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return PretrainConfig(augment=AugmentConfig(**raw.pop("augment")), **raw)


def load_split(folder: Path) -> Split:
    """Decode every PNG below the class folders, in sorted order."""
    class_names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for label, class_name in enumerate(tqdm(class_names, desc=f"read {folder.name}")):
        for path in sorted((folder / class_name).glob("*.png")):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(label)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(stacked, torch.tensor(labels), class_names)


class Augment:
    """Random augmentation of whole batches, drawn from one generator."""

    def __init__(self, config: AugmentConfig, *, image_size: int, generator: torch.Generator):
        self.config = config
        self.image_size = image_size
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Augment images ``(N, 3, H, W)`` in [0, 1] to ``(N, 3, size, size)`` in [0, 1]."""
        return self.erase(self.colour(self.warp(images)))

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=self.generator)

    def chance(self, count: int, probability: float) -> Tensor:
        return self.uniform(count, 0.0, 1.0) < probability

    def warp(self, images: Tensor) -> Tensor:
        """Flip, rotate, zoom, stretch, shift and upscale with a single resampling."""
        config, count = self.config, len(images)
        angle = self.uniform(count, -config.rotation_deg, config.rotation_deg).deg2rad()
        zoom = self.uniform(count, *config.zoom)
        stretch = torch.exp2(self.uniform(count, -config.stretch, config.stretch) / 2)
        flip = torch.where(self.chance(count, 0.5), -1.0, 1.0)
        across, down = zoom * stretch * flip, zoom / stretch
        # The grid spans [-1, 1], so a share of the image's side counts double.
        shift_x = 2 * self.uniform(count, -config.shift, config.shift)
        shift_y = 2 * self.uniform(count, -config.shift, config.shift)
        theta = torch.stack(
            [
                torch.stack([angle.cos() * across, -angle.sin() * down, shift_x], dim=1),
                torch.stack([angle.sin() * across, angle.cos() * down, shift_y], dim=1),
            ],
            dim=1,
        )
        size = [count, 3, self.image_size, self.image_size]
        grid = F.affine_grid(theta, size, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def colour(self, images: Tensor) -> Tensor:
        """Jitter brightness, contrast, saturation and channels; gray or invert a few images."""
        config, count = self.config, len(images)

        def factor(amount: float, channels: int = 1) -> Tensor:
            drawn = self.uniform(count * channels, 1 - amount, 1 + amount)
            return drawn.view(count, channels, 1, 1)

        images = images * factor(config.brightness) * factor(config.channel_gain, 3)
        center = images.mean(dim=(1, 2, 3), keepdim=True)
        images = torch.lerp(center.expand_as(images), images, factor(config.contrast))
        saturation = factor(config.saturation)
        saturation[self.chance(count, config.gray_probability)] = 0.0
        gray = images.mean(dim=1, keepdim=True).expand_as(images)
        images = torch.lerp(gray, images, saturation).clamp(0, 1)
        inverted = self.chance(count, config.invert_probability).view(-1, 1, 1, 1)
        return torch.where(inverted, 1 - images, images)

    def erase(self, images: Tensor) -> Tensor:
        """Erase a rectangle of some images with their mean colour."""
        config, count, size = self.config, len(images), self.image_size
        position = torch.arange(size) / size

        def span() -> Tensor:
            side = self.uniform(count, *config.erase_side)[:, None]
            start = self.uniform(count, 0.0, 1.0)[:, None] * (1 - side)
            return (position >= start) & (position < start + side)

        rectangle = span()[:, None, :, None] & span()[:, None, None, :]
        erased = self.chance(count, config.erase_probability).view(-1, 1, 1, 1)
        return torch.where(rectangle & erased, images.mean(dim=(2, 3), keepdim=True), images)


def normalizer(config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, each ``(1, 3, 1, 1)``."""
    return torch.tensor(config.mean).view(1, 3, 1, 1), torch.tensor(config.std).view(1, 3, 1, 1)


def training_batches(
    split: Split, config: PretrainConfig, augment: Augment, *, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised batches with class probabilities; the last partial batch is dropped."""
    mean, std = normalizer(config)
    # torch's beta distribution takes no generator.
    numpy_generator = np.random.default_rng((config.seed, epoch))
    order = torch.randperm(len(split.labels), generator=augment.generator)
    for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
        chosen = order[start : start + config.batch_size]
        images = augment(split.images[chosen].float() / 255)
        targets = F.one_hot(split.labels[chosen], len(split.class_names)).float()
        alpha = config.augment.mixup_alpha
        keep = float(numpy_generator.beta(alpha, alpha)) if alpha > 0 else 1.0
        images = torch.lerp(images.flip(0), images, keep)
        targets = torch.lerp(targets.flip(0), targets, keep)
        yield ((images - mean) / std).contiguous(memory_format=torch.channels_last), targets


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, config: PretrainConfig) -> float:
    """Return top-1 accuracy with the preprocessing of the weights."""
    model.eval()
    mean, std = normalizer(config)
    size = [config.image_size, config.image_size]
    correct = 0
    for start in range(0, len(split.labels), EVAL_BATCH_SIZE):
        chosen = slice(start, start + EVAL_BATCH_SIZE)
        images = split.images[chosen].float() / 255
        upscaled = F.interpolate(images, size, mode="bilinear", antialias=True)
        inputs = ((upscaled - mean) / std).contiguous(memory_format=torch.channels_last)
        correct += int((model(inputs).argmax(dim=1) == split.labels[chosen]).sum())
    return correct / len(split.labels)


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum; no weight decay on biases and batch norm."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    undecayed = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )


def lr_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def save_backbone(
    model: nn.Module, path: Path, *, config: PretrainConfig, epochs: int, top1: float
) -> None:
    """Write all tensors except the head, with their provenance as metadata."""
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("fc.")
    }
    metadata = {
        "architecture": "torchvision shufflenet_v2_x0_5 without fc",
        "data": "CIFAR-100 without its five classes of people (95 classes), "
        "first 150 training and 50 test images a class",
        "preprocessing": f"RGB in [0, 1], resize {config.image_size} (bilinear, antialias), "
        f"center crop {config.image_size}, mean {config.mean}, std {config.std}",
        "script": "benchmarks/bundled_weights/pretrain.py",
        "seed": str(config.seed),
        "epochs": str(epochs),
        "test_top1": f"{top1:.4f}",
        "torch": str(torch.__version__),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    save_file(tensors, unfinished, metadata=metadata)
    unfinished.replace(path)


def train_one_epoch(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    label_smoothing: float,
) -> float:
    """Train for one epoch and return the mean training loss."""
    model.train()
    losses: list[float] = []
    for inputs, targets in batches:
        loss = F.cross_entropy(model(inputs), targets, label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def pretrain(config: PretrainConfig, data: Path, output: Path) -> float:
    """Train, evaluate and save; return the test top-1 after the last epoch."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True)
    train, test = load_split(data / "train"), load_split(data / "test")
    if train.class_names != test.class_names:
        raise SystemExit(f"{data}: train and test hold different class folders")

    model = shufflenet_v2_x0_5(num_classes=len(train.class_names))
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    steps_per_epoch = len(train.labels) // config.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: lr_factor(
            step,
            warmup_steps=config.warmup_epochs * steps_per_epoch,
            total_steps=config.epochs * steps_per_epoch,
        ),
    )
    augment = Augment(
        config.augment,
        image_size=config.image_size,
        generator=torch.Generator().manual_seed(config.seed),
    )
    top1 = 0.0
    reporter = tqdm(range(1, config.epochs + 1), desc="pretrain", unit="epoch")
    for epoch in reporter:
        batches = training_batches(train, config, augment, epoch=epoch)
        loss = train_one_epoch(
            model, batches, optimizer, schedule, label_smoothing=config.label_smoothing
        )
        if epoch % config.eval_every == 0 or epoch == config.epochs:
            top1 = evaluate(model, test, config)
            save_backbone(model, output, config=config, epochs=epoch, top1=top1)
        reporter.set_postfix(loss=f"{loss:.3f}", test_top1=f"{top1:.4f}")
    return top1


def default_data() -> Path:
    """Return the CIFAR-100 folder in $FINETUNE_SHARED or ../shared."""
    shared = os.environ.get("FINETUNE_SHARED")
    return (Path(shared) if shared else REPOSITORY.parent / "shared") / "data" / "cifar100"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=default_data(), help="folder of train/, test/")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--config", type=Path, default=HERE / "pretrain.yaml")
    arguments = parser.parse_args()
    top1 = pretrain(load_config(arguments.config), arguments.data, arguments.output)
    print(f"test top-1 {top1:.4f}: {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
