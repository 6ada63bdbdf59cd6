"""From a decoded photo to pixels of the network's size; normalisation follows in batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from finetune.config import PreprocessingConfig

_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def build_transform(preprocessing: PreprocessingConfig, *, random_crop: bool) -> v2.Transform:
    """From an RGB photo, uint8 ``(3, H, W)``, to uint8 pixels ``(3, crop, crop)``.

    Without random crops this is what evaluation does, and what the weights' own preset does before
    it scales and normalises. With them it is RandomResizedCrop (Szegedy et al. 2014) and a mirror
    image half of the time.
    """
    interpolation = _INTERPOLATION[preprocessing.interpolation]
    crop = preprocessing.crop
    if random_crop:
        random_resized = v2.RandomResizedCrop(crop, interpolation=interpolation, antialias=True)
        steps = [random_resized, v2.RandomHorizontalFlip()]
    else:
        resize = v2.Resize(preprocessing.resize, interpolation=interpolation, antialias=True)
        steps = [resize, v2.CenterCrop(crop)]
    # torchvision resizes tensors to within one level of Pillow, in a fifth of the time, where it
    # interpolates bilinearly; otherwise it is further off, and Pillow does it (tested).
    through_pillow: list[Any] = []
    if preprocessing.interpolation != "bilinear":
        through_pillow = [v2.ToPILImage()]
    return v2.Compose([*through_pillow, *steps, v2.ToImage(), v2.ToPureTensor()])


def normalise(images: Tensor, preprocessing: PreprocessingConfig) -> Tensor:
    """uint8 pixels ``(N, 3, H, W)`` to the network's float32 input."""
    scaled = F.to_dtype(images, scale=True)
    normalised: Tensor = F.normalize(
        scaled, list(preprocessing.mean), list(preprocessing.std), inplace=True
    )
    return normalised
