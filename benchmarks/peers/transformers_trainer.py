"""Fine-tune a torchvision network with frozen backbone, using the Transformers Trainer."""

from __future__ import annotations

import torch
from common import (
    BATCH_SIZE,
    WORKERS,
    Epochs,
    arguments,
    image_folders,
    network,
    new_head,
    report,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments


class Photos(Dataset):
    """Dataset of dictionaries, whose keys are the arguments of the model."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> dict[str, object]:
        image, label = self.folder[index]
        return {"pixel_values": image, "labels": label}


class WithLoss(nn.Module):
    """Module that returns its own loss, as the Trainer expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Clock(TrainerCallback):
    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def on_epoch_end(self, *_: object, **__: object) -> None:
        self.epochs.trained()

    def on_evaluate(self, *_: object, metrics: dict[str, float], **__: object) -> None:
        self.epochs.evaluated(metrics["eval_top1"])


def top1(prediction: EvalPrediction) -> dict[str, float]:
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"top1": float(hits.mean())}


def main() -> None:
    options = arguments(__doc__)

    def train(epochs: Epochs) -> str:
        torch.manual_seed(0)
        folders = image_folders(options.data)
        model = network(options.weights)
        model.requires_grad_(False)
        head = new_head(model, len(folders["train"].classes))
        settings = TrainingArguments(
            output_dir="run",
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            save_strategy="no",
            dataloader_num_workers=WORKERS,
            report_to="none",
            seed=0,
        )
        optimizer = torch.optim.SGD(head.parameters(), lr=options.lr, momentum=0.9)
        Trainer(
            WithLoss(model),
            settings,
            train_dataset=Photos(folders["train"]),
            eval_dataset=Photos(folders["val"]),
            compute_metrics=top1,
            callbacks=[Clock(epochs)],
            optimizers=(optimizer, None),
        ).train()
        return "crop_flip"

    report(train)


if __name__ == "__main__":
    main()
