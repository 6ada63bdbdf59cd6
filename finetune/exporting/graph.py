"""What is exported: pixels in, probabilities out, in shapes that stay symbolic.

torchvision's own ``resize`` cannot be used here: inside an exported graph it runs, with the aspect
ratio of the example baked in. So sizes are computed here with integers that tracing keeps open.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import PreprocessingConfig

SMALLEST_SIDE, LARGEST_SIDE = 16, 16384
"""Of the photos that an exported graph takes, in pixels."""

_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}


class Preprocess(nn.Module):
    """uint8 pixels ``(N, 3, H, W)`` to the network's input ``(N, 3, crop, crop)``, as in training:
    the shorter side to ``resize``, the central square of ``crop``, then mean and deviation."""

    def __init__(self, config: PreprocessingConfig) -> None:
        super().__init__()
        self.resize, self.crop, self.mode = config.resize, config.crop, _MODES[config.interpolation]
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised float32 ``(N, 3, crop, crop)``."""
        height, width = pixels.shape[2], pixels.shape[3]
        shorter = torch.sym_min(height, width)
        # The longer side is rounded down, as torchvision does.
        new_height = self.resize * height // shorter
        new_width = self.resize * width // shorter
        # Two passes with whole levels between them, width first, as torchvision and Pillow resize.
        levels = self._resized(pixels.float(), height, new_width)
        levels = self._resized(levels, new_height, new_width)
        square = self._cropped(levels, new_height, new_width)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (square / 255 - mean) / std

    def _resized(self, levels: Tensor, height: Any, width: Any) -> Tensor:
        if self.mode == "nearest-exact":
            return F.interpolate(levels, size=(height, width), mode=self.mode)
        resized = F.interpolate(levels, size=(height, width), mode=self.mode, antialias=True)
        return resized.round().clamp(0, 255)

    def _cropped(self, levels: Tensor, height: Any, width: Any) -> Tensor:
        crop = self.crop
        margin = max(crop - self.resize, 0)
        if margin:  # what is smaller than the crop stands in black, as torchvision pads it
            levels = F.pad(levels, [margin] * 4)
        # By index: a slice that happens to be the whole side would leave another graph behind, and
        # the size of the crop has to be a plain number for networks that check it.
        steps = torch.arange(crop, device=levels.device)
        top, left = (margin + _start(size, crop) for size in (height, width))
        return levels.index_select(2, steps + top).index_select(3, steps + left)


def _start(size: Any, crop: int) -> Any:
    """Where the central ``crop`` of ``size`` begins: half the difference, rounded half to even.

    torchvision pads where the difference is negative; without branches, which would be baked in.
    """
    more, less = torch.sym_max(size - crop, 0), torch.sym_max(crop - size, 0)
    half = more // 2
    return half + (more % 2) * (half % 2) - less // 2


class Exported(nn.Module):
    """The whole: preprocessing, network, temperature, softmax."""

    def __init__(
        self, network: nn.Module, preprocess: nn.Module | None, temperature: float | None
    ) -> None:
        super().__init__()
        self.preprocess = preprocess or nn.Identity()
        self.network = network
        self.temperature = 1.0 if temperature is None else temperature

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities ``(N, classes)`` float32."""
        logits = self.network(self.preprocess(pixels))
        return torch.softmax(logits / self.temperature, dim=1)
