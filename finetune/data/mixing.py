"""Mixup and cutmix: images of a batch mixed with each other, and their labels with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from finetune.config import AugmentConfig
from finetune.data.drawing import drawn_from
from finetune.keyed import seed_for


class Mixing:
    """What becomes of a batch, keyed by seed, epoch and the batch's number.

    With both, one of the two is drawn for each batch, as torchvision's own training does. They are
    drawn and applied for a whole batch: image i is mixed with image i - 1.
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
        """None where the config mixes nothing."""
        return cls(augment, num_classes=num_classes, seed=seed) if augment.mixes else None

    def __call__(
        self, pixels: Tensor, labels: Tensor, *, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            pixels: uint8 ``(N, 3, H, W)``.
            labels: ``(N,)`` int64.
            number: Of the batch, within its epoch.

        Returns:
            Pixels, float32 in 0..1, and the share of each class, ``(N, num_classes)`` float32.
        """
        exact = F.to_dtype(pixels, torch.float32, scale=True)
        with drawn_from(seed_for(self._seed, "mix", epoch, number)):
            mixed, shares = self._mix(exact, labels)
        return mixed, shares
