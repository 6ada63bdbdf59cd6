"""Compute features in one pass, then fit scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import torch
from common import (
    BATCH_SIZE,
    WORKERS,
    Epochs,
    arguments,
    best_device,
    image_folders,
    network,
    report,
)
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def main() -> None:
    options = arguments(__doc__)

    def train(epochs: Epochs) -> str:
        device = best_device()
        model = network(options.weights)
        model.classifier = nn.Identity()
        model.eval().to(device)

        def features(folder: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
            loader = DataLoader(folder, batch_size=BATCH_SIZE, num_workers=WORKERS)
            with torch.no_grad():
                rows = [(model(images.to(device)).cpu(), labels) for images, labels in loader]
            values, labels = zip(*rows, strict=True)
            return torch.cat(values).numpy(), torch.cat(labels).numpy()

        folders = image_folders(options.data, "none")
        classifier = LogisticRegression(max_iter=1000).fit(*features(folders["train"]))
        epochs.trained()
        epochs.evaluated(float(classifier.score(*features(folders["val"]))))
        return "none"

    report(train)


if __name__ == "__main__":
    main()
