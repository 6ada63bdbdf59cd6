"""Transforms from a decoded photo to pixels of the input size, and normalisation of batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from finetune.config.schema import PreprocessingConfig
from finetune.data.loading.views import Views

_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
_POLICIES = {
    "trivial": v2.TrivialAugmentWide,
    "randaugment": v2.RandAugment,
    "autoaugment": v2.AutoAugment,
}
_HUE_SHARE = 0.25
"""Ratio of hue jitter to the other strengths: Chen et al. 2020 (SimCLR) use 0.2 with 0.8."""
_LONGEST = 8
"""Aspect ratio up to which a whole photo is resized; longer photos lose their ends first."""


def build_fit(preprocessing: PreprocessingConfig) -> v2.Transform:
    """Build the deterministic transform of an RGB photo to the input size.

    It maps uint8 ``(3, H, W)`` to uint8 ``(3, crop, crop)``. Evaluation uses this transform. With
    fit crop, it equals the preset of the pretrained weights before scaling and normalisation.
    """
    interpolation = _INTERPOLATION[preprocessing.interpolation]
    crop = preprocessing.crop
    if preprocessing.fit == "pad":
        steps: list[Any] = [_Letterbox(crop, interpolation, mean_colour(preprocessing))]
    elif preprocessing.fit == "stretch":
        steps = [v2.Resize((crop, crop), interpolation=interpolation, antialias=True)]
    else:
        resize = v2.Resize(preprocessing.resize, interpolation=interpolation, antialias=True)
        steps = [_WithoutEnds(preprocessing.resize, crop), resize, v2.CenterCrop(crop)]
    return _pixels_through(steps, preprocessing)


def build_draw(preprocessing: PreprocessingConfig, views: Views) -> tuple[v2.Transform, bool]:
    """Build the random transform of a view, and return whether its input is the whole photo.

    With fit crop, policies that crop begin with RandomResizedCrop (Szegedy et al. 2014) of the
    whole photo. Otherwise the photo is fitted first, once, and the random transform works on the
    square.

    The order is that of torchvision's training script: crop, horizontal flip, policy, erasing.
    Erasing fills with the mean colour, which normalisation maps to zero.
    """
    interpolation = _INTERPOLATION[preprocessing.interpolation]
    crops = views.crops and preprocessing.fit == "crop"
    steps: list[Any] = []
    if crops:
        steps.append(
            v2.RandomResizedCrop(
                preprocessing.crop,
                scale=(views.crop_scale, 1.0),
                interpolation=interpolation,
                antialias=True,
            )
        )
    if views.policy != "none":
        steps.append(v2.RandomHorizontalFlip())
    if views.color_jitter:
        strength = views.color_jitter
        steps.append(v2.ColorJitter(strength, strength, strength, strength * _HUE_SHARE))
    if views.policy in _POLICIES:
        steps.append(_POLICIES[views.policy](interpolation=interpolation))
    last = []
    if views.erasing:
        value = [float(level) for level in mean_colour(preprocessing)]
        last = [v2.RandomErasing(views.erasing, value=value)]
    return _pixels_through(steps, preprocessing, last), crops


def _pixels_through(
    steps: list[Any], preprocessing: PreprocessingConfig, last: list[Any] | None = None
) -> v2.Transform:
    # With bilinear interpolation, torchvision resizes tensors to within one level of Pillow in a
    # fifth of the time. With other modes it differs more, so Pillow resizes (tested).
    through_pillow: list[Any] = []
    if preprocessing.interpolation != "bilinear":
        through_pillow = [v2.ToPILImage()]
    return v2.Compose([*through_pillow, *steps, v2.ToImage(), v2.ToPureTensor(), *(last or [])])


def mean_colour(preprocessing: PreprocessingConfig) -> list[int]:
    """Return the colour that normalisation maps to zero, rounded to integer levels."""
    return [min(max(round(255 * mean), 0), 255) for mean in preprocessing.mean]


class _WithoutEnds:
    """Removes the ends of a very long photo, which its central crop does not contain.

    Enlarged until its shorter side is 232 pixels, a line of 60,000 pixels would take ten gigabytes.
    """

    def __init__(self, resize: int, crop: int) -> None:
        self.most = max(_LONGEST, 2 * -(-crop // resize))

    def __call__(self, photo: Any) -> Any:
        height, width = F.get_size(photo)
        longer, kept = max(height, width), self.most * min(height, width)
        if longer <= kept:
            return photo
        kept += (longer - kept) % 2  # keeps the crop centred
        start = (longer - kept) // 2
        if height > width:
            return F.crop(photo, start, 0, kept, width)
        return F.crop(photo, 0, start, height, kept)


class _Letterbox:
    """Resizes the whole photo so that its longer side fits, and pads it with one colour.

    The colour is the mean colour, which normalisation maps to zero, as in the zero padding of the
    network's convolutions.
    """

    def __init__(self, side: int, interpolation: InterpolationMode, colour: list[int]) -> None:
        self.side = side
        self.interpolation = interpolation
        self.colour = colour

    def __call__(self, photo: Any) -> Any:
        height, width = F.get_size(photo)
        longer = max(height, width)
        # Integer rounding, because sizes in an exported graph are integers.
        size = [
            max(1, (2 * length * self.side + longer) // (2 * longer)) for length in (height, width)
        ]
        fitted = F.resize(photo, size, interpolation=self.interpolation, antialias=True)
        top, left = ((self.side - length) // 2 for length in size)
        bars = [left, top, self.side - size[1] - left, self.side - size[0] - top]
        return F.pad(fitted, bars, fill=self.colour)


def normalise(images: Tensor, preprocessing: PreprocessingConfig) -> Tensor:
    """Normalise pixels ``(N, 3, H, W)``, uint8 or float32 in 0..1, to the float32 input."""
    scaled = F.to_dtype(images, torch.float32, scale=True)
    normalised: Tensor = F.normalize(
        scaled,
        list(preprocessing.mean),
        list(preprocessing.std),
        inplace=scaled is not images,
    )
    return normalised
