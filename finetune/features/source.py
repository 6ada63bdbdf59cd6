"""Batches of features: read from a feature store, or computed for each batch.

The training loop receives the trainable part and batches of features, whether these come from a
store, from the frozen prefix, or are the images themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.data.images import Images
from finetune.data.loading.dataloader import Batches
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.sampler import KeyedBatches
from finetune.data.loading.views import Views
from finetune.distributed.ranks import ALONE, Ranks
from finetune.features.extractor import FeatureExtractor, in_float32
from finetune.features.rows import FeatureRows
from finetune.freezing.graph_split import Features
from finetune.results.features import FeatureCounts

FeatureBatch = tuple[Features, Tensor]
"""Input of the trainable part, and labels, on the device.

Labels are class indices ``(N,)`` int64, or class probabilities of mixed images,
``(N, num_classes)`` float32.
"""


class FeatureBatches(Protocol):
    """Batches of features of one split.

    Attributes:
        counts: Rows of features that were computed and reused; None if no features are kept.
    """

    counts: FeatureCounts | None

    @property
    def sizes(self) -> list[int]:
        """Number of images in each batch of an epoch, of all processes together."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""


class FreshFeatures:
    """Features computed for each batch; without a prefix, the images themselves."""

    counts: FeatureCounts | None = None

    def __init__(
        self,
        batches: Batches,
        extractor: FeatureExtractor,
        mixing: Mixing | None = None,
        *,
        both_views: bool = False,
    ) -> None:
        self.batches = batches
        self.extractor = extractor
        self.mixing = mixing
        self.both_views = both_views

    @property
    def sizes(self) -> list[int]:
        """Number of images in each batch of an epoch, of all processes together."""
        return self.batches.sizes

    def __len__(self) -> int:
        return len(self.batches)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""
        return self.batches.files(epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""
        device = self.extractor.device
        for number, (pixels, labels) in enumerate(self.batches.epoch(epoch, start), start):
            labels = labels.to(device, non_blocking=True)
            if not len(labels):
                crop = self.extractor.preprocessing.crop
                pixels = pixels.new_empty(0, 3, crop, crop)
            if self.mixing is not None:
                pixels = pixels.to(device, non_blocking=True)
                pixels, labels = self.mixing(pixels, labels, epoch=epoch, number=number)
            if self.batches.previous_row and len(labels):
                pixels, labels = pixels[1:], labels[1:]
            features = self.extractor.features(pixels)
            if self.both_views:  # as `finetune.features.both_views.BothViews` does
                features = (*features, *self.extractor.features(pixels.flip(3)))
            yield features, labels


class CachedFeatures:
    """Features that are all there."""

    def __init__(
        self,
        rows: FeatureRows,
        images: Images,
        *,
        batch_size: int,
        views: Views,
        shuffle: bool,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.rows = rows
        self.counts: FeatureCounts | None = rows.counts
        self.images = images
        self.views = views
        self.device = device
        self._labels = torch.tensor(images.labels, dtype=torch.int64).to(rows.places.device)
        self._batches = KeyedBatches(
            len(images),
            batch_size,
            views=views,
            shuffle=shuffle,
            balanced=images.labels if images.balanced else None,
            ranks=ranks,
        )

    @property
    def sizes(self) -> list[int]:
        """Number of images in each batch of an epoch, of all processes together."""
        return self._batches.sizes

    def __len__(self) -> int:
        return len(self._batches)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""
        return self._batches.files(self.images, epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""
        self._batches.epoch, self._batches.start = epoch, start
        for keys in self._batches:
            both = torch.tensor(keys, dtype=torch.int64).reshape(-1, 2)
            at, views = both.to(self._labels.device).unbind(dim=1)
            features = tuple(tensor.to(self.device) for tensor in self.rows.take(at, views))
            yield in_float32(features), self._labels[at].to(self.device)

    def part(self, positions: Sequence[int], *, batch_size: int, training: bool) -> CachedFeatures:
        """Return the batches of some of these images.

        Args:
            positions: Indices of the images.
            training: True shuffles and uses the views of this source; False keeps the order and
                uses the first view of each image.
        """
        return CachedFeatures(
            self.rows.part(positions),
            self.images.subset(positions),
            batch_size=batch_size,
            views=self.views if training else Views.of("none"),
            shuffle=training,
            device=self.device,
        )
