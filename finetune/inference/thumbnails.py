"""JPEG thumbnails and Grad-CAM overlays as data URLs, for the report page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from finetune.config.schema import PreprocessingConfig
from finetune.core.reporter import Reporter
from finetune.core.threads import on_cores
from finetune.data.loading.decoding import read_photo
from finetune.data.loading.transforms import build_fit, normalise
from finetune.inference.grad_cam import grad_cam

_LARGE, _SMALL = (288, 66), (192, 60)
"""Maximum side in pixels, and quality, of a thumbnail, and of one of a photo full of detail."""
_MOST_CHARACTERS = 28_000
_AT_ONCE, _READ_AT_ONCE = 8, 32

# Black, violet, orange, yellow: brightness increases, so the scale also works in grayscale.
_HEAT = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])


def thumbnail(pixels: Tensor) -> str:
    """Encode uint8 pixels ``(3, H, W)`` as a data URL of at most about 30 kB.

    A page of a hundred photos thus stays below 10 MB, whatever they show.
    """
    url = data_url(pixels, side=_LARGE[0], quality=_LARGE[1])
    if len(url) > _MOST_CHARACTERS:
        url = data_url(pixels, side=_SMALL[0], quality=_SMALL[1])
    return url


def data_url(pixels: Tensor, *, side: int, quality: int) -> str:
    """Encode uint8 pixels ``(3, H, W)`` as a JPEG data URL of at most ``side`` pixels per side."""
    image: Image.Image = to_pil_image(pixels)
    image.thumbnail((side, side))
    drawn = io.BytesIO()
    image.save(drawn, format="JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def photo_urls(
    paths: Sequence[str], encode: Callable[[Tensor], str], reporter: Reporter, *, what: str
) -> dict[str, str]:
    """Return the data URL of each photo that can be read, by its path.

    Args:
        encode: Function from uint8 pixels ``(3, H, W)`` to a data URL.
        what: Description of the progress.
    """

    def drawn(path: str) -> str | None:
        try:
            return encode(read_photo(path))
        except OSError:  # it was readable before
            return None

    every = list(paths)
    batches = [
        every[start : start + _READ_AT_ONCE] for start in range(0, len(every), _READ_AT_ONCE)
    ]
    urls: dict[str, str] = {}
    for batch in reporter.track(batches, what, total=len(batches)):
        for path, url in zip(batch, on_cores(drawn, batch), strict=True):
            if url is not None:
                urls[path] = url
    return urls


def seen_part(
    pixels: Tensor, preprocessing: PreprocessingConfig
) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the part of a photo that the network sees.

    The values are fractions of the width and height of the photo ``(3, H, W)``.
    """
    if preprocessing.fit != "crop":
        return 0.0, 0.0, 1.0, 1.0
    height, width = pixels.shape[1:]
    side = min(height, width) * preprocessing.crop / preprocessing.resize
    across, down = min(1.0, side / width), min(1.0, side / height)
    return (1 - across) / 2, (1 - down) / 2, across, down


def looked_at(
    model: torch.nn.Module,
    photos: Sequence[Tensor],
    classes: Sequence[int],
    preprocessing: PreprocessingConfig,
) -> list[str | None]:
    """Draw a Grad-CAM overlay over the network's input for each photo.

    Args:
        model: Complete network in eval mode.
        photos: Photos as uint8 pixels ``(3, H, W)``.
        classes: Class index to explain for each photo.
        preprocessing: Preprocessing of the network.

    Returns:
        Data URL for each photo; None if the network has no spatial features.
    """
    transform = build_fit(preprocessing)
    found: list[str | None] = []
    for at in range(0, len(photos), _AT_ONCE):
        pixels = torch.stack([transform(photo) for photo in photos[at : at + _AT_ONCE]])
        wanted = torch.tensor(classes[at : at + _AT_ONCE])
        heat = grad_cam(model, normalise(pixels, preprocessing), wanted)
        if heat is None:
            found += [None] * len(pixels)
        else:
            found += [thumbnail(_overlaid(p, h)) for p, h in zip(pixels, heat, strict=True)]
    return found


def _overlaid(pixels: Tensor, heat: Tensor) -> Tensor:
    """Blend a heat map ``(h, w)`` in [0, 1] over a grayscale photo ``(3, H, W)``.

    Opacity increases with heat.
    """
    smooth = F.interpolate(
        heat[None, None], size=pixels.shape[1:], mode="bilinear", align_corners=False
    )[0]
    place = smooth[0] * (len(_HEAT) - 1)
    below = place.floor().clamp(max=len(_HEAT) - 2).long()
    share = (place - below)[..., None]
    colour = (_HEAT[below] * (1 - share) + _HEAT[below + 1] * share).permute(2, 0, 1)
    opacity = 0.25 + 0.4 * smooth
    grey = pixels.float().mean(dim=0, keepdim=True)
    return (grey * (1 - opacity) + colour * opacity).round().clamp(0, 255).byte()
