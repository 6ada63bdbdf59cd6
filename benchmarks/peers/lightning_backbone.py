"""Train with Lightning's `BackboneFinetuning` callback, with the backbone frozen for the whole run.

The callback keeps the backbone's norm layers trainable, which requires the whole backward pass.
`--freeze-norms` uses its base class and freezes them too.
"""

from __future__ import annotations

import torch
from common import (
    BATCH_SIZE,
    FREEZE_NORMS,
    WORKERS,
    Epochs,
    arguments,
    image_folders,
    network,
    new_head,
    report,
)
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Module whose attribute ``backbone`` is frozen by the callback."""

    def __init__(self, model: nn.Module, head: nn.Module, lr: float, epochs: int) -> None:
        super().__init__()
        self.backbone = model.features
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), head)
        self.lr = lr
        self.epochs = epochs

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Batch) -> None:
        images, labels = batch
        hits = (self(images).argmax(1) == labels).float()
        self.log("top1", hits.mean(), batch_size=len(labels))

    def configure_optimizers(self) -> object:
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


class FreezeAll(BaseFinetuning):
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, *_: object) -> None:
        """Never unfreeze."""


class Clock(Callback):
    """Timer of epochs; evaluation runs within a training epoch, the sanity check is ignored."""

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def on_validation_start(self, trainer: Trainer, _: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.epochs.trained()

    def on_validation_end(self, trainer: Trainer, _: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.epochs.evaluated(float(trainer.callback_metrics["top1"]))


def main() -> None:
    options = arguments(__doc__, freeze_norms=FREEZE_NORMS)

    def train(epochs: Epochs) -> str:
        seed_everything(0)
        folders = image_folders(options.data)
        loaders = [
            DataLoader(folder, batch_size=BATCH_SIZE, shuffle=split == "train", num_workers=WORKERS)
            for split, folder in folders.items()
        ]
        model = network(options.weights)
        head = new_head(model, len(folders["train"].classes))
        never = BackboneFinetuning(unfreeze_backbone_at_epoch=options.epochs + 1)
        trainer = Trainer(
            max_epochs=options.epochs,
            callbacks=[FreezeAll() if options.freeze_norms else never, Clock(epochs)],
            enable_checkpointing=False,
            logger=False,
        )
        trainer.fit(Classifier(model, head, options.lr, options.epochs), *loaders)
        return "crop_flip"

    report(train)


if __name__ == "__main__":
    main()
