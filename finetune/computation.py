"""How the input of the live part comes about: the frozen prefix in its form, on pixels."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.config import PreprocessingConfig
from finetune.data.transforms import normalise
from finetune.form import Form, Runner
from finetune.runtime import on_cores
from finetune.split import Features, Split
from finetune.stopping import unless_asked

CPU_ROWS = 8
"""Images that a core computes at once: their activations stay in its caches.

On two cores MobileNetV2's prefix ran at 451 images/s by eights and at 242 by 32 (bfloat16,
channels_last); ResNet-18 and -50, DenseNet and ConvNeXt were fastest by 8 or 16 as well.
"""

_FEWEST_ROWS = 2
_WIDE_BYTES = 16 * 2**20
"""Fewer where their widest tensor would be larger than this: each core holds two or three such
tensors at once. In float32 MobileNetV2's prefix ran at 177 images/s by twos, 167 by fours and 111
by eights, EfficientNet-B4's (380 pixels) at 11, 10 and 7; in bfloat16 at 465 by fours and 477 by
eights, and at 31, 28 and 22."""


@dataclass(frozen=True)
class Computation:
    """Everything that decides a feature's value, beside the image.

    Attributes:
        prefix: None where nothing is frozen that could be computed once: images themselves are
            what the live part takes.
        crossing: Shape of each tensor that the prefix gives, for one image.
        identity: SHA-256 of the frozen weights and of the prefix's graph.
        widest: Numbers in the prefix's largest tensor, for one image.
    """

    prefix: nn.Module | None
    crossing: tuple[tuple[int, ...], ...]
    form: Form
    preprocessing: PreprocessingConfig
    device: torch.device
    identity: str
    widest: int = 0

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of uint8 pixels ``(N, 3, H, W)``, as the prefix gives them, on the device."""
        if self.prefix is None or self.device.type != "cpu":
            return self._compute(pixels)
        return joined(on_cores(self._compute, list(torch.split(pixels, self.rows))))

    def in_this_thread(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """As above, for callers that run in several threads themselves.

        Raises:
            Interrupted: a signal asked to stop; whoever waits for the thread need not wait long.
        """
        parts = unless_asked(torch.split(pixels, self.rows))
        return joined([self._compute(part) for part in parts])

    def features(self, pixels: Tensor) -> Features:
        """What the live part takes."""
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
        """Images that a core computes at once."""
        rows = CPU_ROWS
        while rows > _FEWEST_ROWS and rows * self.widest * self.form.dtype.itemsize > _WIDE_BYTES:
            rows //= 2
        return rows

    @property
    def pixel_bytes(self) -> int:
        """Size of one image's pixels, as they are decoded."""
        return 3 * self.preprocessing.crop**2

    @property
    def image_bytes(self) -> int:
        """Size of one image's features."""
        return sum(torch.Size(shape).numel() for shape in self.crossing) * self.form.dtype.itemsize


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The features of all images, from those of some at a time."""
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def as_features(tensors: tuple[Tensor, ...]) -> Features:
    """What the live part takes: float32, a tuple only where several tensors cross."""
    exact = tuple(tensor.float() for tensor in tensors)
    return exact[0] if len(exact) == 1 else exact


def forward_runner(plain: Computation, pixels: Tensor) -> Runner:
    """For `choose_form`: the forward pass of a prefix, computed as it will be, in any form.

    On a CPU by one core: all of them would hold the tensors of every form, the largest too.
    """

    def prepare(form: Form) -> Callable[[], Tensor]:
        assert plain.prefix is not None
        module = plain.prefix  # as it is, it is in the plain form
        if form != plain.form:
            module = form.arrange(copy.deepcopy(module), cast=True)
        computation = replace(plain, prefix=module, form=form)

        def step() -> Tensor:
            if plain.device.type == "cpu":
                [tensors] = on_cores(computation.in_this_thread, [pixels])
            else:
                tensors = computation(pixels)
            return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

        return step

    return prepare


def frozen_identity(split: Split, frozen: dict[str, str]) -> str:
    """What the frozen prefix is: its graph, and the hashes of every frozen tensor."""
    graph = getattr(split.prefix, "graph", None)
    text = json.dumps([str(getattr(graph, "code", None)), sorted(frozen.items())])
    return hashlib.sha256(text.encode()).hexdigest()
