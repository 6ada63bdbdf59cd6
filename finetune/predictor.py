"""Predictions from a checkpoint: the network, form and batches of ``eval``, for any images.

import finetune

model = finetune.load("runs/pets")
for prediction in model.predict(["a.jpg", "b.jpg"]):
    print(prediction.path, prediction.label, prediction.probability)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import torch
from PIL import Image
from torch import Tensor

from finetune.checkpoint import load_checkpoint
from finetune.computation import as_features
from finetune.config_data import FULL_RANGE
from finetune.data.decoding import read_photo, upright_rgb
from finetune.data.images import Images
from finetune.data.levels import stored_colour, white_of
from finetune.data.look import look_at
from finetune.data.quiet import warnings_ignored
from finetune.data.transforms import build_fit
from finetune.errors import DataError
from finetune.eval_results import Prediction, Unreadable
from finetune.keeping import BLOCK_ROWS
from finetune.locks import lock_across_forks
from finetune.opening import Opened, open_network
from finetune.predictions import best_classes
from finetune.progress import Progress, Silent
from finetune.run_folder import checkpoint_of
from finetune.runtime import available_cores, on_cores, one_thread_a_core
from finetune.temperature import probabilities

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ImageLike: TypeAlias = Union[str, os.PathLike[str], Image.Image, Tensor, "NDArray[np.uint8]"]
"""A path; a Pillow image; uint8 pixels as a tensor ``(3, H, W)`` or an array ``(H, W, 3)``."""

_BLOCKS_A_CORE = 4
_WAITING_BYTES = 2**28
"""Of features or pixels that may wait for the live part."""

_loading = tuple(lock_across_forks() for _ in range(16))
"""An image of Pillow's that is loaded late belongs to one thread at a time: each has one of these
locks, and two different images seldom the same."""

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class _Block:
    """Images that are decoded, and where there is a prefix and a CPU, computed together.

    Attributes:
        positions: Of the rows of ``tensors``, among all images.
        tensors: Features; or uint8 pixels, where the prefix runs elsewhere or there is none.
    """

    positions: list[int]
    tensors: tuple[Tensor, ...]
    broken: list[tuple[int, Unreadable]]


class Predictor:
    """A trained network, ready to label images; `finetune.load` makes one.

    Any number of threads may use it at once: calls share the network alone, which is in eval mode
    and never changed.

    Attributes:
        class_names: What labels may be, in the order of the network's outputs.
        temperature: What logits are divided by, where ``eval --calibrate`` fitted it.
        levels: The level that is white in images with more than 8 bits a channel; None is 65535.
    """

    def __init__(self, opened: Opened, *, batch_size: int | None = None) -> None:
        """``batch_size``: images at a time; by default as in training, which `eval` uses too.

        Raises:
            ValueError: it is not positive.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        config = opened.metadata.config
        self.class_names = opened.metadata.class_names
        self.temperature = opened.metadata.temperature
        self.model_name = opened.metadata.model_name
        self._engine = opened.engine
        self._engine.live.eval()  # for good: others may compute with it at any time
        self._batch_size = batch_size or config.data.batch_size
        self.levels = opened.metadata.preprocessing.levels
        self._transform = build_fit(opened.metadata.preprocessing)
        # A value depends on its batch in the last bits. So blocks are those of ``eval``, which
        # keeps features in blocks of its own where it keeps them.
        kept = opened.engine.split.prefix is not None and config.features.cache != "off"
        self._block_rows = BLOCK_ROWS if kept and batch_size is None else self._batch_size

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        threshold: float = 0.0,
    ) -> list[Prediction]:
        """Label images: one or several paths, Pillow images, tensors or arrays.

        Args:
            images: Paths; Pillow images; uint8 pixels as tensors ``(3, H, W)``, RGB, or as arrays
                ``(H, W, 3)``; a stack of such is several. Of any size: each is resized and cropped
                as in training.
            top: So many classes are given for each image.
            threshold: Below this probability a prediction is ``unsure``.

        Returns:
            One prediction for each image, in their order.

        Raises:
            DataError: names an image that cannot be decoded, by its path or its place.
            ValueError: ``top`` is not positive, or ``threshold`` no probability.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, not {threshold}")
        alone = isinstance(images, str | os.PathLike | Image.Image) or (
            (isinstance(images, Tensor) or _is_array(images)) and images.ndim < 4  # type: ignore[union-attr]
        )
        several: list[ImageLike] = [images] if alone else list(images)  # type: ignore[list-item, arg-type]
        found = []
        for prediction in self.stream(several, top=top, threshold=threshold):
            if isinstance(prediction, Unreadable):
                raise DataError(f"{prediction.path}: cannot be read: {prediction.reason}")
            found.append(prediction)
        return found

    def stream(
        self, images: Sequence[ImageLike], *, top: int = 5, threshold: float = 0.0
    ) -> Iterator[Prediction | Unreadable]:
        """As `predict`, one by one as they are computed; what cannot be read is passed on too."""

        def best_of(logits: Tensor) -> tuple[list[list[int]], list[list[float]]]:
            return best_classes(logits, probabilities(logits, self.temperature), top)

        waiting: list[tuple[int, Unreadable]] = []
        for positions, best, broken in self._computed(images, best_of):
            waiting += broken
            for position, at, values in zip(positions, *best, strict=True):
                while waiting and waiting[0][0] < position:
                    yield waiting.pop(0)[1]
                yield Prediction(
                    path=_path_of(images[position]),
                    label=self.class_names[at[0]],
                    probability=values[0],
                    unsure=values[0] < threshold,
                    top=tuple((self.class_names[i], v) for i, v in zip(at, values, strict=True)),
                )
        yield from (unreadable for _, unreadable in waiting)

    def logits(
        self, images: Sequence[ImageLike]
    ) -> Iterator[tuple[list[int], Tensor, list[tuple[int, Unreadable]]]]:
        """Positions, logits ``(n, classes)`` on the CPU, and what was broken, batch by batch."""
        yield from self._computed(images, lambda logits: logits)

    def _computed(
        self, images: Sequence[ImageLike], finish: Callable[[Tensor], _Found]
    ) -> Iterator[tuple[list[int], _Found, list[tuple[int, Unreadable]]]]:
        """As `logits`, with what ``finish`` makes of them."""
        size = self._batch_size
        positions: list[int] = []
        rows: list[tuple[Tensor, ...]] = []
        broken: list[tuple[int, Unreadable]] = []
        for block in self._blocks(images):
            broken += block.broken
            positions += block.positions
            rows += [block.tensors] if block.positions else []
            while len(positions) >= size:
                found, rows = self._run(rows, size, finish)
                yield positions[:size], found, broken
                positions, broken = positions[size:], []
        if positions:
            yield positions, self._run(rows, len(positions), finish)[0], broken
        elif broken:
            yield [], finish(torch.empty(0, len(self.class_names))), broken

    def _run(
        self, rows: list[tuple[Tensor, ...]], size: int, finish: Callable[[Tensor], _Found]
    ) -> tuple[_Found, list[tuple[Tensor, ...]]]:
        """The first rows, computed; and the others."""

        @torch.no_grad()  # no longer than this: a caller may leave `stream` in its middle
        def compute(rows: list[tuple[Tensor, ...]]) -> tuple[_Found, list[tuple[Tensor, ...]]]:
            tensors, rest = _cut(rows, size)
            computation = self._engine.computation
            if self._computes_in_threads:
                features = as_features(tensors)
            else:
                features = computation.features(tensors[0])
            logits: Tensor = self._engine.live(features)
            return finish(logits.cpu()), rest

        if self._engine.device.type != "cpu":
            return compute(rows)
        # In a new thread, with one of torch's: `evaluate` has as many, and so the same last bits.
        # The caller's may be others; and after a fork OpenMP would wait for ever for threads that
        # the parent alone has.
        [found] = on_cores(compute, [rows])
        return found

    @property
    def _computes_in_threads(self) -> bool:
        """Whether each core computes the prefix of the images that it decoded."""
        return self._engine.device.type == "cpu" and self._engine.split.prefix is not None

    @property
    def _row_bytes(self) -> int:
        """What waits of one image."""
        computation = self._engine.computation
        if self._computes_in_threads:
            return computation.image_bytes
        return 3 * computation.preprocessing.crop**2

    def _blocks(self, images: Sequence[ImageLike]) -> Iterator[_Block]:
        rows = self._block_rows
        spans = [range(at, min(at + rows, len(images))) for at in range(0, len(images), rows)]
        prepare: Callable[[range], _Block] = lambda span: self._prepare(images, span)  # noqa: E731
        cores = available_cores()
        room = _WAITING_BYTES // max(rows * self._row_bytes, 1)
        together = min(max(room, cores), _BLOCKS_A_CORE * cores)
        for at in range(0, len(spans), together):
            with one_thread_a_core() as pool:
                blocks = list(pool.map(prepare, spans[at : at + together]))
            yield from blocks

    def _prepare(self, images: Sequence[ImageLike], span: range) -> _Block:
        pixels: list[Tensor] = []
        positions: list[int] = []
        broken: list[tuple[int, Unreadable]] = []
        for position in span:
            try:
                pixels.append(self._transform(_decoded(images[position], self.levels)))
                positions.append(position)
            except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
                broken.append((position, _unreadable(images[position], position, error)))
        if not pixels:
            return _Block([], (), broken)
        batch = torch.stack(pixels)
        if not self._computes_in_threads:
            return _Block(positions, (batch,), broken)
        with torch.no_grad():  # a thread has its own
            return _Block(positions, self._engine.computation.in_this_thread(batch), broken)


def open_predictor(
    run: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Predictor:
    """Open a run's best checkpoint, or a checkpoint file.

    Raises:
        CheckpointError: it is absent, damaged, or no checkpoint of ours.
    """
    path = checkpoint_of(os.fspath(run))
    state, metadata = load_checkpoint(path)
    none = Images((), (), metadata.class_names)
    opened = open_network(path, state, metadata, none, known=False, progress=progress or Silent())
    return Predictor(opened, batch_size=batch_size)


def _decoded(image: ImageLike, levels: int | None) -> Tensor:
    """uint8 pixels ``(3, H, W)``."""
    if isinstance(image, str | os.PathLike):
        return read_photo(image, levels)
    if isinstance(image, Image.Image):
        with warnings_ignored(), _loading[id(image) // 64 % len(_loading)]:
            white = white_of(image, levels)  # how it is stored is unknown once it is decoded
            if white != FULL_RANGE and stored_colour(image):
                raise OSError("has 16-bit color, of which Pillow keeps 8 bits; give its path")
            image.load()
            image.getexif()  # is read once as well
        return upright_rgb(image, white)
    tensor = image if isinstance(image, Tensor) else _from_array(image)
    if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[0] != 3:
        raise DataError(
            f"pixels must be uint8 of shape (3, H, W), not {tensor.dtype} of {tuple(tensor.shape)}"
        )
    if not tensor.numel():
        raise DataError(f"an image of {tuple(tensor.shape)} has no pixels")
    return tensor.cpu()


def _is_array(image: Any) -> bool:
    return type(image).__module__ == "numpy"


def _from_array(image: Any) -> Tensor:
    if not _is_array(image):
        raise DataError(f"a {type(image).__name__} is no path, Pillow image, tensor or array")
    tensor = torch.from_numpy(image.copy())
    return tensor.permute(2, 0, 1) if tensor.dim() == 3 else tensor


def _path_of(image: ImageLike) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _unreadable(image: ImageLike, position: int, error: Exception) -> Unreadable:
    path = _path_of(image)
    if path is None:
        return Unreadable(f"images[{position}]", str(error) or type(error).__name__)
    # In the words of check-data, where it finds the reason as well.
    reason = look_at(str(Path(path)), full=False).reason
    return Unreadable(path, reason or (str(error) or type(error).__name__).splitlines()[0])


def _cut(
    blocks: list[tuple[Tensor, ...]], rows: int
) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    """The first rows of blocks, and the blocks that are left."""
    whole = tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))
    rest = tuple(tensor[rows:] for tensor in whole)
    return tuple(tensor[:rows] for tensor in whole), [rest] if len(rest[0]) else []
