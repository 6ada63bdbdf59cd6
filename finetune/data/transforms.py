"""From a decoded photo to pixels of the network's size; normalisation follows in batch."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from finetune.config import PreprocessingConfig

# Pillow would hand a PostScript file named .jpg to Ghostscript: only these decoders are asked.
_PIL_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def read_image(path: Any) -> Image.Image:
    """The photo as RGB, upright (EXIF orientation applied).

    Raises:
        OSError: it cannot be read or decoded.
    """
    with Image.open(path, formats=_PIL_FORMATS) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def build_transform(preprocessing: PreprocessingConfig, *, random_crop: bool) -> v2.Transform:
    """From an RGB photo to uint8 pixels ``(3, crop, crop)``.

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
    return v2.Compose([*steps, v2.PILToTensor()])


def normalise(images: Tensor, preprocessing: PreprocessingConfig) -> Tensor:
    """uint8 pixels ``(N, 3, H, W)`` to the network's float32 input."""
    scaled = F.to_dtype(images, scale=True)
    normalised: Tensor = F.normalize(
        scaled, list(preprocessing.mean), list(preprocessing.std), inplace=True
    )
    return normalised
