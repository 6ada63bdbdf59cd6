"""The config's section ``augment``: what happens to training images at random."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from finetune.config_section import Section

DRAWN_POLICIES = ("crop_flip", "trivial", "randaugment", "autoaugment")
"""Policies that draw a view; those of none and flip are simply there."""


_SMALLEST_ALPHA = 1e-6
"""Far below it a beta distribution cannot be drawn from."""


class AugmentConfig(Section):
    """What happens to training images at random; validation images are never touched."""

    policy: Literal[
        "auto", "none", "flip", "crop_flip", "trivial", "randaugment", "autoaugment"
    ] = "auto"
    """auto: flip where features are kept, else crop_flip. The last three change colours and shapes
    on top of crop_flip, as torchvision's own training does."""
    crop_scale: float = Field(default=0.35, ge=0.01, le=1)
    """The smallest share of a photo's area that a random crop keeps, where the policy crops.

    torchvision's 0.08 is for training from nothing. Where all of a pretrained MobileNetV2 trained
    for 3 to 10 epochs, 0.35 ended higher on three sets (docs/training.md).
    """
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """Strength: brightness, contrast and saturation change by up to this share, hue by a quarter of
    it (the proportions of Chen et al. 2020)."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of a picture is blanked out (Zhong et al. 2017)."""
    mixup: float = Field(default=0.0, ge=0, le=10)
    """alpha: each picture and its label are blended with another's (Zhang et al. 2017)."""
    cutmix: float = Field(default=0.0, ge=0, le=10)
    """alpha: a rectangle of each picture comes from another (Yun et al. 2019). With mixup, one of
    the two is drawn for each batch."""
    views: int = Field(default=0, ge=0, le=1000)
    """This many random views of each image, drawn once, whose features can be kept; 0 draws a new
    view in every epoch."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def draws(self) -> bool:
        """Whether an image's views are drawn at random."""
        return self.policy in DRAWN_POLICIES or self.erasing > 0 or self.color_jitter > 0

    @field_validator("mixup", "cutmix")
    @classmethod
    def _can_be_drawn_from(cls, alpha: float) -> float:
        if 0 < alpha < _SMALLEST_ALPHA:
            raise ValueError(f"must be 0 or at least {_SMALLEST_ALPHA:g}, not {alpha:g}")
        return alpha

    @model_validator(mode="after")
    def _views_fit(self) -> AugmentConfig:
        if self.views and self.mixes:
            mixing = "mixup" if self.mixup else "cutmix"
            raise ValueError(
                f"views: has no effect with {mixing}, which mixes every batch anew, so that no "
                "features can be kept"
            )
        if self.views and not self.draws:
            raise ValueError(
                f"views: has no effect unless something is drawn: policy {self.policy} has no "
                f"random views; {', '.join(DRAWN_POLICIES)}, erasing or color_jitter have"
            )
        return self
