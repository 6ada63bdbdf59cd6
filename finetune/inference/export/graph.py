"""Exported module: pixels to probabilities, with symbolic shapes.

torchvision's ``resize`` is not used because tracing makes the aspect ratio of the example constant.
Sizes are computed here in integer arithmetic that stays symbolic.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.checkpoints.limits import Limits
from finetune.config.schema import PreprocessingConfig
from finetune.data.loading.transforms import mean_colour
from finetune.inference.limits import (
    Distance,
    has_limit,
    least_images,
    prediction_sets,
    set_threshold,
)

SMALLEST_SIDE, LARGEST_SIDE = 16, 16384
"""Bounds of the sides, in pixels, of the photos that an exported graph accepts."""

COVERAGE = 0.9
"""Coverage of the prediction sets in an export."""

_MODES = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}


class Preprocess(nn.Module):
    """Preprocessing of training: uint8 ``(N, 3, H, W)`` to float32 ``(N, 3, crop, crop)``.

    Images are cropped, padded or stretched to a square, and normalized by mean and standard
    deviation.
    """

    def __init__(self, config: PreprocessingConfig) -> None:
        super().__init__()
        self.fit, self.resize, self.crop = config.fit, config.resize, config.crop
        self.mode = _MODES[config.interpolation]
        for name, values in (
            ("mean", config.mean),
            ("std", config.std),
            ("colour", mean_colour(config)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalized float32 images ``(N, 3, crop, crop)``."""
        height, width = pixels.shape[2], pixels.shape[3]
        new_height, new_width = self._sizes(height, width)
        # Two passes, width first, each rounded to integer levels, as in torchvision and Pillow.
        levels = self._resized(pixels.float(), height, new_width)
        levels = self._resized(levels, new_height, new_width)
        square = levels if self.fit == "stretch" else self._placed(levels, new_height, new_width)
        return (square / 255 - self.get_buffer("mean")) / self.get_buffer("std")

    def _sizes(self, height: Any, width: Any) -> tuple[Any, Any]:
        if self.fit == "stretch":
            return self.crop, self.crop
        if self.fit == "pad":  # the longer side becomes crop, the other is rounded
            longer = torch.sym_max(height, width)
            return tuple(
                torch.sym_max(1, (2 * side * self.crop + longer) // (2 * longer))
                for side in (height, width)
            )
        # The longer side is rounded down, as torchvision does.
        shorter = torch.sym_min(height, width)
        return self.resize * height // shorter, self.resize * width // shorter

    def _resized(self, levels: Tensor, height: Any, width: Any) -> Tensor:
        if self.mode == "nearest-exact":
            return F.interpolate(levels, size=(height, width), mode=self.mode)
        resized = F.interpolate(levels, size=(height, width), mode=self.mode, antialias=True)
        return resized.round().clamp(0, 255)

    def _placed(self, levels: Tensor, height: Any, width: Any) -> Tensor:
        """Return the central square of side ``crop``, padded if the image is smaller."""
        crop = self.crop
        if self.fit == "pad":
            margin = crop
            colour = self.get_buffer("colour")
            levels = F.pad(levels - colour, [margin] * 4) + colour
        else:  # images smaller than the crop are padded with black, as in torchvision
            margin = max(crop - self.resize, 0)
            levels = F.pad(levels, [margin] * 4) if margin else levels
        # Indexing instead of slicing: a slice of the whole side would be traced as another graph,
        # and networks that check the input size need a constant.
        steps = torch.arange(crop, device=levels.device)
        top, left = (margin + _start(size, crop) for size in (height, width))
        return levels.index_select(2, steps + top).index_select(3, steps + left)


def _start(size: Any, crop: int) -> Any:
    """Start of the central ``crop`` of ``size``: half the difference, rounded half to even.

    The result is negative where torchvision pads. There are no branches, because tracing would
    make them constant.
    """
    more, less = torch.sym_max(size - crop, 0), torch.sym_max(crop - size, 0)
    half = more // 2
    return half + (more % 2) * (half % 2) - less // 2


class Exported(nn.Module):
    """Complete exported module: preprocessing, network, temperature and softmax."""

    def __init__(
        self, network: nn.Module, preprocess: nn.Module | None, temperature: float | None
    ) -> None:
        super().__init__()
        self.preprocess = preprocess or nn.Identity()
        self.network = network
        self.temperature = 1.0 if temperature is None else temperature

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities ``(N, classes)`` in float32."""
        return self.shares(self.network(self.preprocess(pixels)))

    def shares(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits ``(N, classes)``."""
        return torch.softmax(logits / self.temperature, dim=1)


class ExportedWithLimits(nn.Module):
    """Exported module that also gives the distance to the training photos and prediction sets.

    Args:
        exported: Module whose network gives logits and embeddings in one tensor.
        limits: Limits of the answers; one of them at least is known.
        num_classes: Number of classes.
    """

    def __init__(self, exported: Exported, limits: Limits, num_classes: int) -> None:
        super().__init__()
        self.exported = exported
        self.num_classes = num_classes
        self.distance = Distance(limits) if has_limit(limits.record) else None
        known = limits.record.images >= least_images(COVERAGE)
        self.least = set_threshold(limits, COVERAGE) if known else None

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        distance = ["distance", "unlike"] if self.distance is not None else []
        return ["probabilities", *distance, *(["in_set"] if self.least is not None else [])]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities ``(N, classes)``, then the other outputs that are known: distance
        ``(N,)``, unlike ``(N,)`` and in_set ``(N, classes)``."""
        output = self.exported.network(self.exported.preprocess(pixels))
        shares = self.exported.shares(output[:, : self.num_classes])
        found = [shares]
        if self.distance is not None:
            distance = self.distance(output[:, self.num_classes :])
            found += [distance, distance > 1]
        if self.least is not None:
            found.append(prediction_sets(shares, self.least))
        return tuple(found)
