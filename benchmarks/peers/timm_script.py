"""Train every parameter with timm's components and the defaults of its training script.

The script is not included in timm's package. The defaults used here: RandomResizedCrop with random
interpolation, flip, color jitter 0.4, label smoothing 0.1, weight decay 2e-5, the last incomplete
batch dropped. Its five warm-up epochs are omitted, since no contender has any.

``--fine-tune`` uses what timm's author recommends for another dataset (issue 25 of its repository):
a tenth of the learning rate of the ImageNet recipe for networks of this kind, which is RMSprop with
0.016 for 256 images, epsilon 0.001 and weight decay 1e-5.
"""

from __future__ import annotations

import contextlib

import torch
from common import (
    BATCH_SIZE,
    MEAN,
    STD,
    WORKERS,
    Epochs,
    arguments,
    best_device,
    network,
    new_head,
    report,
)
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy


def main() -> None:
    options = arguments(
        __doc__,
        amp={"action": "store_true", "help": "bfloat16 and channels_last"},
        fine_tune={"action": "store_true", "help": "the settings its author recommends"},
        size={"type": int, "default": 224, "help": "input size in pixels"},
        seed={"type": int, "default": 0},
    )
    device = best_device()
    layout = torch.channels_last if options.amp else torch.contiguous_format

    def autocast() -> contextlib.AbstractContextManager[object]:
        if not options.amp:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def train(epochs: Epochs) -> str:
        torch.manual_seed(options.seed)
        loaders = {
            split: create_loader(
                create_dataset("", root=str(options.data), split=split),
                input_size=(3, options.size, options.size),
                batch_size=BATCH_SIZE,
                is_training=split == "train",
                interpolation="random" if split == "train" else "bilinear",
                crop_pct=0.875 if options.size == 224 else 1.0,
                mean=MEAN,
                std=STD,
                num_workers=WORKERS,
                device=device,
            )
            for split in ("train", "val")
        }
        model = network(options.weights)
        new_head(model, len(loaders["train"].dataset.reader.class_to_idx))
        model.to(device=device, memory_format=layout)
        chosen = {"opt": "sgd", "lr": options.lr, "weight_decay": 2e-5}
        if options.fine_tune:
            lr = 0.1 * 0.016 * BATCH_SIZE / 256
            chosen = {"opt": "rmsproptf", "lr": lr, "eps": 0.001, "weight_decay": 1e-5}
        optimizer = create_optimizer_v2(model, momentum=0.9, **chosen)
        schedule, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=options.epochs)
        loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
        for epoch in range(options.epochs):
            model.train()
            for images, labels in loaders["train"]:
                with autocast():
                    loss = loss_of(model(images.contiguous(memory_format=layout)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step(epoch + 1)
            epochs.trained()
            model.eval()
            meter = AverageMeter()
            with torch.no_grad():
                for images, labels in loaders["val"]:
                    with autocast():
                        logits = model(images.contiguous(memory_format=layout))
                    meter.update(accuracy(logits, labels)[0].item(), len(labels))
            epochs.evaluated(meter.avg / 100)
        return "crop_flip, color jitter"

    report(train)


if __name__ == "__main__":
    main()
