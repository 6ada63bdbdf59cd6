"""Feature extractor: computes the features of uint8 pixels with the frozen prefix."""

from __future__ import annotations

import copy
import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from finetune.config.schema import PreprocessingConfig
from finetune.core.signals import unless_asked
from finetune.core.threads import on_cores
from finetune.data.loading.transforms import normalise
from finetune.features.compute_format import ComputeFormat, Runner
from finetune.freezing.graph_split import Features, SplitPoint

BLOCK_ROWS = 32
"""Rows of features that are computed and stored together."""

CPU_ROWS = 8
"""Images that a core processes at once, so that their activations fit in its caches.

On two cores MobileNetV2's prefix ran at 451 images/s with 8 and at 242 with 32 (bfloat16,
channels_last); ResNet-18 and -50, DenseNet and ConvNeXt were fastest with 8 or 16 as well.
"""

_GPU_ROWS = 256
_GPU_WIDE_BYTES = 512 * 2**20
"""Size limit of the largest tensor of a batch of rows to be kept on a GPU, beside which two or
three of this size need room."""

_FEWEST_ROWS = 2
_WIDE_BYTES = 16 * 2**20
"""Size limit of the largest tensor; if it would be exceeded, a core processes fewer images at once.

Each core needs two or three such tensors at once. In float32 MobileNetV2's prefix ran at 177
images/s with 2 images, 167 with 4 and 111 with 8, EfficientNet-B4's (380 pixels) at 11, 10 and 7.
In bfloat16 MobileNetV2's ran at 465 with 4 and 477 with 8, EfficientNet-B4's at 31, 28 and 22.
"""


@dataclass(frozen=True)
class Origin:
    """Network and split point of a frozen prefix, which allow dividing it at an earlier one.

    Attributes:
        model: Network. A weak reference: a predictor needs the prefix alone, and frees the
            network's own frozen tensors.
        point: Split point of the network.
        frozen: Name and SHA-256 of every frozen tensor.
    """

    model: weakref.ref[nn.Module]
    point: SplitPoint
    frozen: Mapping[str, str]


@dataclass(frozen=True)
class FeatureExtractor:
    """Feature extractor; its fields determine a feature's value for a given image.

    Attributes:
        prefix: Frozen prefix; None if there is none, so that the features are the images.
        crossing: Shape of each output tensor of the prefix, for one image.
        identity: SHA-256 of the frozen weights and of the prefix's graph.
        widest: Number of elements of the prefix's largest tensor, for one image.
        network, cut: Name of the network, and of the module after which the prefix ends.
        pads: Whether batches of features to be kept are padded to one size, so that a row does not
            depend on its neighbours.
        names: Names of the nodes of the network's graph whose values are the features.
        origin: Network and split point of the prefix; None if it cannot be divided.
    """

    prefix: nn.Module | None
    crossing: tuple[tuple[int, ...], ...]
    form: ComputeFormat
    preprocessing: PreprocessingConfig
    device: torch.device
    identity: str
    widest: int = 0
    network: str = ""
    cut: str = ""
    pads: bool = True
    names: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __call__(self, pixels: Tensor) -> Features:
        """Compute the prefix's outputs for uint8 pixels ``(N, 3, H, W)``, on the device."""
        if self.prefix is None or self.device.type != "cpu":
            return self._compute(pixels)
        return joined(on_cores(self._compute, list(torch.split(pixels, self.rows))))

    def in_this_thread(self, pixels: Tensor) -> Features:
        """Compute the features of uint8 pixels in the calling thread.

        Raises:
            Interrupted: a signal asked to stop; checked between micro-batches, so that the thread
                ends soon.
        """
        parts = unless_asked(torch.split(pixels, self.rows))
        return joined([self._compute(part) for part in parts])

    def rows_of(self, pixels: Tensor) -> Features:
        """Compute rows to be kept for uint8 pixels, on all cores of a CPU."""
        parts = list(torch.split(pixels, self.batch_rows))
        if self.device.type != "cpu":
            return joined([self.batch(part) for part in parts])
        return joined(on_cores(self.batch, parts))

    def batch(self, pixels: Tensor) -> Features:
        """Compute rows to be kept for at most `batch_rows` images, in the calling thread."""
        count = len(pixels)
        if self.pads:
            pixels = padded(pixels, self.batch_rows)
        return tuple(tensor[:count] for tensor in self._compute(pixels))

    def features(self, pixels: Tensor) -> Features:
        """Compute the input of the trainable part for uint8 pixels."""
        return in_float32(self(pixels))

    def _compute(self, pixels: Tensor) -> Features:
        images = normalise(pixels.to(self.device, non_blocking=True), self.preprocessing)
        if self.prefix is None:
            return (images,)
        images = images.to(self.form.dtype).contiguous(memory_format=self.form.layout)
        features: Features = self.prefix(images)
        return features

    @property
    def row_format(self) -> str:
        """Description of how rows to be kept are computed: format, device and batch size."""
        return f"{self.form} on {self.device.type} by {self.batch_rows}"

    @property
    def rows(self) -> int:
        """Number of images that a core processes at once."""
        rows = CPU_ROWS
        while rows > _FEWEST_ROWS and rows * self.widest * self.form.dtype.itemsize > _WIDE_BYTES:
            rows //= 2
        return rows

    @property
    def batch_rows(self) -> int:
        """Number of images in each batch of rows to be kept.

        A GPU computes several blocks at once, unless rows depend on their neighbours, so that they
        have to be computed in the same blocks again.
        """
        if self.device.type == "cpu":
            return self.rows
        rows = _GPU_ROWS if self.pads else BLOCK_ROWS
        wide = self.widest * self.form.dtype.itemsize
        while rows > BLOCK_ROWS and rows * wide > _GPU_WIDE_BYTES:
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


def padded(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor with at least this many rows, of which the last is repeated."""
    lacking = rows - len(tensor)
    if lacking <= 0:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])])


def joined(parts: list[Features]) -> Features:
    """Concatenate the features of several micro-batches."""
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def in_float32(features: Features) -> Features:
    """Convert the prefix's outputs to the inputs of the trainable part, which are float32."""
    return tuple(tensor.float() for tensor in features)


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


def _parents(name: str) -> set[str]:
    """Return a tensor's name and the paths of all modules that it is in."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def frozen_identity(
    prefix: nn.Module | None, reads: Iterable[str], frozen: Mapping[str, str]
) -> str:
    """Return the SHA-256 of the frozen prefix's graph and of the hashes of its tensors.

    Frozen tensors outside the prefix do not count, so that it is the same with another head.

    Args:
        reads: Paths of the modules and tensors that the prefix consists of.
        frozen: Name and SHA-256 of every frozen tensor of the network.
    """
    graph = getattr(prefix, "graph", None)
    own = frozenset(reads)
    inside = [(name, sha256) for name, sha256 in sorted(frozen.items()) if _parents(name) & own]
    text = json.dumps([str(getattr(graph, "code", None)), inside])
    return hashlib.sha256(text.encode()).hexdigest()
