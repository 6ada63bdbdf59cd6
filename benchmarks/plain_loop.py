"""The transfer-learning loop as people write it: what `compare.py` measures this project against.

ImageFolder, a DataLoader with two workers, RandomResizedCrop and flip, float32, the whole network
in every epoch. It freezes by ``requires_grad`` alone and calls ``model.train()``, so that frozen
norm statistics drift, as in most scripts.
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--train", nargs="*", default=[], help="globs of parameters that train")
    parser.add_argument("--lr", type=float, default=0.01)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    flip = transforms.RandomHorizontalFlip()
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose([transforms.RandomResizedCrop(224), flip, *tail])
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *tail])
    train = datasets.ImageFolder(f"{arguments.data}/train", augment)
    val = datasets.ImageFolder(f"{arguments.data}/val", plain)
    loaders = {
        "train": DataLoader(train, batch_size=32, shuffle=True, num_workers=2),
        "val": DataLoader(val, batch_size=32, num_workers=2),
    }
    model = models.mobilenet_v2()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(fnmatchcase(name, glob) for glob in arguments.train)
    model.classifier[1] = nn.Linear(model.last_channel, len(train.classes))
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=arguments.lr, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)
    epochs = []
    for _ in range(arguments.epochs):
        start = time.perf_counter()
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        schedule.step()
        train_s = time.perf_counter() - start
        start = time.perf_counter()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in loaders["val"]:
                correct += int((model(images).argmax(1) == labels).sum())
        epochs.append(
            {
                "train_s": train_s,
                "eval_s": time.perf_counter() - start,
                "top1": correct / len(val),
            }
        )
    print(json.dumps(epochs))


if __name__ == "__main__":
    main()
