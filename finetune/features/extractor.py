"""Feature extractor: computes the features of uint8 pixels with the frozen prefix."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.config.schema import PreprocessingConfig
from finetune.core.signals import unless_asked
from finetune.core.threads import on_cores
from finetune.data.loading.transforms import normalise
from finetune.features.compute_format import ComputeFormat, Runner
from finetune.freezing.graph_split import Features, GraphSplit

CPU_ROWS = 8
"""Images that a core processes at once, so that their activations fit in its caches.

On two cores MobileNetV2's prefix ran at 451 images/s with 8 and at 242 with 32 (bfloat16,
channels_last); ResNet-18 and -50, DenseNet and ConvNeXt were fastest with 8 or 16 as well.
"""

_FEWEST_ROWS = 2
_WIDE_BYTES = 16 * 2**20
"""Size limit of the largest tensor; if it would be exceeded, a core processes fewer images at once.

Each core needs two or three such tensors at once. In float32 MobileNetV2's prefix ran at 177
images/s with 2 images, 167 with 4 and 111 with 8, EfficientNet-B4's (380 pixels) at 11, 10 and 7.
In bfloat16 MobileNetV2's ran at 465 with 4 and 477 with 8, EfficientNet-B4's at 31, 28 and 22.
"""


@dataclass(frozen=True)
class FeatureExtractor:
    """Feature extractor; its fields determine a feature's value for a given image.

    Attributes:
        prefix: Frozen prefix; None if there is none, so that the features are the images.
        crossing: Shape of each output tensor of the prefix, for one image.
        identity: SHA-256 of the frozen weights and of the prefix's graph.
        widest: Number of elements of the prefix's largest tensor, for one image.
    """

    prefix: nn.Module | None
    crossing: tuple[tuple[int, ...], ...]
    form: ComputeFormat
    preprocessing: PreprocessingConfig
    device: torch.device
    identity: str
    widest: int = 0

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute the prefix's outputs for uint8 pixels ``(N, 3, H, W)``, on the device."""
        if self.prefix is None or self.device.type != "cpu":
            return self._compute(pixels)
        return joined(on_cores(self._compute, list(torch.split(pixels, self.rows))))

    def in_this_thread(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of uint8 pixels in the calling thread.

        Raises:
            Interrupted: a signal asked to stop; checked between micro-batches, so that the thread
                ends soon.
        """
        parts = unless_asked(torch.split(pixels, self.rows))
        return joined([self._compute(part) for part in parts])

    def features(self, pixels: Tensor) -> Features:
        """Compute the input of the trainable part for uint8 pixels."""
        return as_features(self(pixels))

    def _compute(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = normalise(pixels.to(self.device, non_blocking=True), self.preprocessing)
        if self.prefix is None:
            return (images,)
        images = images.to(self.form.dtype).contiguous(memory_format=self.form.layout)
        features = self.prefix(images)
        return (features,) if isinstance(features, Tensor) else features

    @property
    def rows(self) -> int:
        """Number of images that a core processes at once."""
        rows = CPU_ROWS
        while rows > _FEWEST_ROWS and rows * self.widest * self.form.dtype.itemsize > _WIDE_BYTES:
            rows //= 2
        return rows

    @property
    def pixel_bytes(self) -> int:
        """Size of one image's decoded pixels, in bytes."""
        return 3 * self.preprocessing.crop**2

    @property
    def image_bytes(self) -> int:
        """Size of one image's features, in bytes."""
        return sum(torch.Size(shape).numel() for shape in self.crossing) * self.form.dtype.itemsize


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate the features of several micro-batches."""
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def as_features(tensors: tuple[Tensor, ...]) -> Features:
    """Convert the prefix's outputs to the trainable part's input: float32, a tuple if several."""
    exact = tuple(tensor.float() for tensor in tensors)
    return exact[0] if len(exact) == 1 else exact


def forward_runner(plain: FeatureExtractor, pixels: Tensor) -> Runner:
    """Return a runner for `choose_format`: the forward pass of a prefix in a compute format.

    On a CPU it uses one core, to limit the memory needed for the tensors of all formats.
    """

    def prepare(form: ComputeFormat) -> Callable[[], Tensor]:
        assert plain.prefix is not None
        module = plain.prefix  # already in the plain format
        if form != plain.form:
            module = form.arrange(copy.deepcopy(module), cast=True)
        extractor = replace(plain, prefix=module, form=form)

        def step() -> Tensor:
            if plain.device.type == "cpu":
                [tensors] = on_cores(extractor.in_this_thread, [pixels])
            else:
                tensors = extractor(pixels)
            return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

        return step

    return prepare


def frozen_identity(split: GraphSplit, frozen: dict[str, str]) -> str:
    """Return the SHA-256 of the frozen prefix's graph and of all frozen hashes."""
    graph = getattr(split.prefix, "graph", None)
    text = json.dumps([str(getattr(graph, "code", None)), sorted(frozen.items())])
    return hashlib.sha256(text.encode()).hexdigest()
