"""Config section ``augment``: random augmentation of training images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from finetune.config.base import InvalidError, NoEffectError, Section

DRAWN_POLICIES = ("crop_flip", "trivial", "randaugment", "autoaugment")
"""Policies with random views; the views of ``none`` and ``flip`` are fixed."""


_SMALLEST_ALPHA = 1e-6
"""Smallest mixup or cutmix alpha; far smaller ones make sampling from Beta(alpha, alpha) fail."""


Policy = Literal["none", "flip", "crop_flip", "trivial", "randaugment", "autoaugment"]
"""Augmentation policies."""


class AugmentConfig(Section):
    """Random augmentation of training images; validation images are never augmented."""

    policy: Literal["auto", Policy] = "auto"
    """Augmentation policy; auto is flip if features are cached, else crop_flip.

    trivial, randaugment and autoaugment change colours and shapes in addition to crop_flip, as
    torchvision's own training does.
    """
    crop_scale: float = Field(default=0.35, ge=0.01, le=1)
    """Smallest fraction of a photo's area in a random crop; only for policies that crop.

    torchvision's 0.08 is meant for training from scratch. When all of a pretrained MobileNetV2 was
    trained for 3 to 10 epochs, 0.35 gave higher accuracy on three data sets (docs/training.md).
    """
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """Strength of color jitter: maximum relative change of brightness, contrast and saturation; hue
    changes by up to a quarter of it (proportions of Chen et al. 2020)."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability of random erasing of a rectangle of an image (Zhong et al. 2017)."""
    mixup: float = Field(default=0.0, ge=0, le=10)
    """Mixup alpha: each image and its label are blended with another's (Zhang et al. 2017)."""
    cutmix: float = Field(default=0.0, ge=0, le=10)
    """CutMix alpha: a rectangle of each image is taken from another (Yun et al. 2019). If mixup is
    also set, one of the two is drawn for each batch."""
    views: int = Field(default=0, ge=0, le=1000)
    """Number of fixed random views of each image, whose features can be cached; 0 draws a new view
    in every epoch."""

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is used."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def draws(self) -> bool:
        """Whether the views of an image are random."""
        return self.policy in DRAWN_POLICIES or self.erasing > 0 or self.color_jitter > 0

    @field_validator("mixup", "cutmix")
    @classmethod
    def _can_be_drawn_from(cls, alpha: float) -> float:
        if 0 < alpha < _SMALLEST_ALPHA:
            raise InvalidError(f"must be 0 or at least {_SMALLEST_ALPHA:g}, not {alpha:g}")
        return alpha

    @model_validator(mode="after")
    def _views_fit(self) -> AugmentConfig:
        if self.views and self.mixes:
            mixing = "mixup" if self.mixup else "cutmix"
            raise NoEffectError(
                "views",
                f" with {mixing}, which mixes every batch differently, so features cannot be "
                "cached",
                to_do="remove one of them",
            )
        if self.views and not self.draws:
            raise NoEffectError(
                "views",
                f" with policy {self.policy}, which has no random views",
                to_do=f"set policy to one of {', '.join(DRAWN_POLICIES)}, "
                f"or set erasing or color_jitter",
            )
        return self
