"""Mixup and cutmix of the images and labels of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from finetune.config.schema import AugmentConfig
from finetune.core.seeding import seed_for
from finetune.data.loading.rng import drawn_from


class Mixing:
    """Mixup and cutmix of batches, keyed by seed, epoch and batch number.

    If both are set, one of the two is drawn for each batch, as in torchvision's training script. It
    is drawn once and applied to the whole batch: image i is mixed with image i - 1.
    """

    def __init__(self, augment: AugmentConfig, *, num_classes: int, seed: int) -> None:
        kinds: list[Any] = []
        if augment.mixup:
            kinds.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
        if augment.cutmix:
            kinds.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
        self._mix = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
        self._seed = seed

    @classmethod
    def of(cls, augment: AugmentConfig, *, num_classes: int, seed: int) -> Mixing | None:
        """Return the mixup and cutmix of a config, or None if it has neither."""
        return cls(augment, num_classes=num_classes, seed=seed) if augment.mixes else None

    def __call__(
        self, pixels: Tensor, labels: Tensor, *, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Apply mixup or cutmix to a batch.

        Args:
            pixels: Pixels ``(N, 3, H, W)``, uint8.
            labels: Labels ``(N,)``, int64.
            epoch: Epoch of the batch.
            number: Index of the batch within its epoch.

        Returns:
            Pixels, float32 in 0..1, and the share of each class, ``(N, num_classes)`` float32.
        """
        exact = F.to_dtype(pixels, torch.float32, scale=True)
        with drawn_from(seed_for(self._seed, "mix", epoch, number)):
            mixed, shares = self._mix(exact, labels)
        return mixed, shares
