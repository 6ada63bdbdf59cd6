"""A plain PyTorch transfer-learning loop, the reference of every ratio.

ImageFolder, a DataLoader with two workers, RandomResizedCrop and flip, float32, the whole network
in every epoch. It freezes by ``requires_grad`` alone and calls ``model.train()``, so that frozen
norm statistics drift, as in most scripts.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from common import (
    BATCH_SIZE,
    WORKERS,
    Epochs,
    arguments,
    best_device,
    image_folders,
    network,
    new_head,
    report,
)
from torch import nn
from torch.utils.data import DataLoader


def main() -> None:
    options = arguments(
        __doc__,
        train={"nargs": "*", "default": [], "help": "globs of the trainable parameters"},
        augment={"choices": ["crop_flip", "flip", "none"], "default": "crop_flip"},
        model={"default": "mobilenet_v2"},
        size={"type": int, "default": 224, "help": "input size in pixels"},
        seed={"type": int, "default": 0},
        bfloat16={
            "action": "store_true",
            "help": "use autocast and channels_last (not used for the timings)",
        },
    )

    def train(epochs: Epochs) -> str:
        torch.manual_seed(options.seed)
        device = best_device()
        folders = image_folders(options.data, options.augment, options.size)
        loaders = {
            "train": DataLoader(
                folders["train"], batch_size=BATCH_SIZE, shuffle=True, num_workers=WORKERS
            ),
            "val": DataLoader(folders["val"], batch_size=BATCH_SIZE, num_workers=WORKERS),
        }
        model = network(options.weights, options.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(fnmatchcase(name, glob) for glob in options.train)
        new_head(model, len(folders["train"].classes))
        model.to(device)
        if options.bfloat16:
            model.to(memory_format=torch.channels_last)
        fast = torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16)
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=options.lr, momentum=0.9
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
        for _ in range(options.epochs):
            model.train()
            for images, labels in loaders["train"]:
                optimizer.zero_grad()
                with fast:
                    logits = model(images.to(device))
                loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
                loss.backward()
                optimizer.step()
            schedule.step()
            epochs.trained()
            model.eval()
            correct = 0
            with torch.no_grad(), fast:
                for images, labels in loaders["val"]:
                    predicted = model(images.to(device)).argmax(1)
                    correct += int((predicted == labels.to(device)).sum())
            epochs.evaluated(correct / len(folders["val"]))
        return options.augment

    report(train)


if __name__ == "__main__":
    main()
