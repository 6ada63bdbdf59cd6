"""Averages of the logits of an image and its mirror image (``model.average_mirror``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from finetune.config.model import ModelConfig
from finetune.features.source import FeatureBatch, FeatureBatches
from finetune.results.features import FeatureCounts


class MeanOfViews(nn.Module):
    """Mean of a module's outputs for the image and for its mirror image.

    Its inputs are the module's for the image, then the same number of them for the mirror image.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the mean of both outputs, ``(N, ...)``."""
        half = len(inputs) // 2
        # Two calls: in one of twice the batch, the last bits of a row could differ.
        return cast(Tensor, (self.module(*inputs[:half]) + self.module(*inputs[half:])) / 2)


class MirrorAveraged(nn.Module):
    """Mean of a network's logits for images and their mirror images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.mean = MeanOfViews(network)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of images ``(N, 3, H, W)``."""
        return cast(Tensor, self.mean(images, images.flip(3)))


def averaging(module: nn.Module, config: ModelConfig) -> nn.Module:
    """Return `MeanOfViews` of a module where the config asks for it, else the module."""
    return MeanOfViews(module) if config.average_mirror else module


class BothViews:
    """Batches with the features of each image, then those of its mirror image."""

    def __init__(self, upright: FeatureBatches, mirrored: FeatureBatches) -> None:
        self.counts: FeatureCounts | None = upright.counts  # they share the rows
        self._upright, self._mirrored = upright, mirrored

    @property
    def sizes(self) -> list[int]:
        """Number of images in each batch of an epoch, of all processes together."""
        return self._upright.sizes

    def __len__(self) -> int:
        return len(self._upright)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""
        return self._upright.files(epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""
        both = zip(
            self._upright.epoch(epoch, start), self._mirrored.epoch(epoch, start), strict=True
        )
        for (upright, labels), (mirrored, _) in both:
            yield (*upright, *mirrored), labels
