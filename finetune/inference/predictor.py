"""Predictions from a checkpoint, with the network, compute format and batches of ``eval``.

import finetune

model = finetune.load("runs/pets")
for prediction in model.predict(["a.jpg", "b.jpg"]):
    print(prediction.path, prediction.label, prediction.probability)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import torch
from PIL import Image
from torch import Tensor, nn

from finetune.checkpoints.checkpoint import read_checkpoint
from finetune.checkpoints.limits import Limits
from finetune.checkpoints.run_dir import checkpoint_of
from finetune.config.model_registry import family_of
from finetune.core.errors import CheckpointError, DataError
from finetune.core.locks import lock_across_forks
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.threads import on_cores
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.images import Images
from finetune.data.levels import load_with_white
from finetune.data.loading.dataloader import Sample
from finetune.data.loading.dataloader import Unreadable as Broken
from finetune.data.loading.decoding import read_photo, upright_rgb
from finetune.data.loading.sampler import Key
from finetune.data.loading.transforms import build_fit
from finetune.data.quiet_decoding import warnings_ignored
from finetune.features.both_views import averaging
from finetune.features.extractor import in_float32
from finetune.features.row_reader import RowReader
from finetune.freezing.graph_split import Features
from finetune.inference.calibration import probabilities
from finetune.inference.limits import Distance, has_limit, prediction_sets, set_threshold
from finetune.inference.load import LoadedNetwork, open_network
from finetune.inference.prediction_rows import best_classes
from finetune.results.evaluation import Prediction, Unreadable
from finetune.results.features import FeatureCounts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ImageLike: TypeAlias = Union[str, os.PathLike[str], Image.Image, Tensor, "NDArray[np.uint8]"]
"""Path, Pillow image, or uint8 pixels as a tensor ``(3, H, W)`` or an array ``(H, W, 3)``."""

_loading = tuple(lock_across_forks() for _ in range(16))
"""Locks for lazily loaded Pillow images, which only one thread may load at a time.

Each image is assigned one lock; different images rarely share one.
"""

_Found = TypeVar("_Found")

ADD_LIMITS = "add them with: finetune eval RUN --calibrate"


@dataclass(frozen=True)
class PhotoFeatures:
    """Features of some images.

    Attributes:
        positions: Index among all images, for each row of ``features``.
        features: Inputs of the trainable part; uint8 pixels if it is the whole network. With
            ``model.average_mirror``, those of the image, then those of its mirror image.
        broken: Position and error of each image that could not be read.
    """

    positions: list[int]
    features: Features
    broken: list[tuple[int, Unreadable]]


@dataclass(frozen=True)
class PhotoEmbeddings:
    """Embeddings of some images.

    Attributes:
        positions: Index among all images, for each row.
        vectors: Inputs of the head, ``(n, d)`` float32 on the CPU.
        logits: ``(n, classes)`` float32 on the CPU.
        broken: Position and error of each image that could not be read.
    """

    positions: list[int]
    vectors: Tensor
    logits: Tensor
    broken: list[tuple[int, Unreadable]]


class Predictor:
    """A trained network that labels images; created by `finetune.load`.

    It may be used by several threads at once: calls share only the network, which is in eval mode
    and never modified.

    Attributes:
        class_names: Class names, in the order of the network's outputs.
        temperature: Temperature that logits are divided by; None unless ``eval --calibrate`` has
            fitted one.
        model_name: Name of the torchvision builder.
        levels: Value of white in images with more than 8 bits per channel; None means 65535.
        dimensions: Number of values of an embedding.
        limits: Limits of the answers, with which photos unlike the training photos are marked; None
            if the checkpoint has none.
    """

    def __init__(
        self, opened: LoadedNetwork, *, batch_size: int | None = None, keeps: bool = False
    ) -> None:
        """Create a predictor from a loaded network.

        Args:
            opened: Loaded network.
            batch_size: Number of images per batch; by default that of training and `eval`.
            keeps: Whether features of image files are added to the feature cache; those that are
                in it are used in any case.

        Raises:
            ValueError: ``batch_size`` is not positive.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        config = opened.metadata.config
        self.class_names = opened.metadata.class_names
        self.temperature = opened.metadata.temperature
        self.model_name = opened.metadata.model_name
        head = opened.model.get_submodule(family_of(self.model_name).head)
        self.dimensions = int(head.get_parameter("weight").shape[1])
        self.limits = opened.limits
        if self.limits is not None and len(self.limits.centre) != self.dimensions:
            raise CheckpointError(
                f"damaged: its limits are for {len(self.limits.centre):,} values of an embedding, "
                f"not {self.dimensions:,}",
                kind="checkpoint.damaged",
            )
        self._distance = None
        if self.limits is not None and has_limit(self.limits.record):
            self._distance = Distance(self.limits)
        self._engine = opened.engine
        self._engine.trainable_part.eval()  # set once: other threads may use it at any time
        self._batch_size = batch_size or config.data.batch_size
        self.levels = opened.metadata.preprocessing.levels
        self._transform = build_fit(opened.metadata.preprocessing)
        self._rows = RowReader(opened.engine.extractor, config.features, keeps=keeps)
        self._model = config.model

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        threshold: float = 0.0,
        coverage: float | None = None,
    ) -> list[Prediction]:
        """Label one or several images.

        Args:
            images: Paths, Pillow images, or RGB uint8 pixels as tensors ``(3, H, W)`` or arrays
                ``(H, W, 3)``; a 4-dimensional stack is several images. Images may have any size:
                each is resized and cropped as in training.
            top: Number of classes reported per image.
            threshold: Probability below which a prediction is ``unsure``.
            coverage: Share of photos whose true class is in their prediction set; None gives no
                sets.

        Returns:
            One prediction per image, in the order of the images.

        Raises:
            DataError: an image cannot be decoded; the message has its path or index.
            CheckpointError: the checkpoint cannot give prediction sets with this coverage.
            ValueError: ``top`` is not positive, or ``threshold`` or ``coverage`` is not between 0
                and 1.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, not {threshold}")
        if coverage is not None and not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, not {coverage}")
        found = []
        answers = self.stream(_several(images), top=top, threshold=threshold, coverage=coverage)
        for prediction in answers:
            if isinstance(prediction, Unreadable):
                raise _error_of(prediction)
            found.append(prediction)
        return found

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Return the embeddings of one or several images: the inputs of the head.

        Args:
            images: As in `predict`.

        Returns:
            Array ``(n, d)`` float32, in the order of the images; a single image gives one row.
            Where the head takes a map, its mean over all positions.

        Raises:
            DataError: an image cannot be decoded; the message has its path or index.
        """
        parts = [torch.empty(0, self.dimensions)]
        for block in self.embeddings(_several(images)):
            if block.broken:
                raise _error_of(block.broken[0][1])
            parts.append(block.vectors)
        vectors: NDArray[np.float32] = torch.cat(parts).numpy()
        return vectors

    def stream(
        self,
        images: Sequence[ImageLike],
        *,
        top: int = 5,
        threshold: float = 0.0,
        coverage: float | None = None,
    ) -> Iterator[Prediction | Unreadable]:
        """Yield one prediction per image as it is computed, or `Unreadable` for a broken image."""
        least = None if coverage is None else set_threshold(self._known_limits, coverage)
        part = self._logits if self._distance is None else self._logits_and_embedding

        classes = len(self.class_names)

        def answers_of(output: Tensor) -> list[_Answer]:
            logits, embeddings = output[:, :classes], output[:, classes:]
            shares = probabilities(logits, self.temperature)
            distances: list[float] | list[None] = [None] * len(logits)
            if self._distance is not None:
                distances = self._distance(embeddings).tolist()
            sets: list[list[int]] | list[None] = [None] * len(logits)
            if least is not None:
                order, _ = best_classes(logits, shares, classes)
                sets = [
                    [at for at in row_order if row[at]]
                    for row_order, row in zip(
                        order, prediction_sets(shares, least).tolist(), strict=True
                    )
                ]
            best = best_classes(logits, shares, top)
            return [_Answer(*row) for row in zip(*best, distances, sets, strict=True)]

        waiting: list[tuple[int, Unreadable]] = []
        for positions, answers, broken in self._computed(images, part, answers_of):
            waiting += broken
            for position, answer in zip(positions, answers, strict=True):
                while waiting and waiting[0][0] < position:
                    yield waiting.pop(0)[1]
                yield self._prediction(_path_of(images[position]), answer, threshold)
        yield from (unreadable for _, unreadable in waiting)

    def _prediction(self, path: str | None, answer: _Answer, threshold: float) -> Prediction:
        names, best = self.class_names, answer.shares[0]
        return Prediction(
            path=path,
            label=names[answer.classes[0]],
            probability=best,
            unsure=best < threshold,
            top=tuple(
                (names[at], share) for at, share in zip(answer.classes, answer.shares, strict=True)
            ),
            distance=answer.distance,
            unlike=None if answer.distance is None else answer.distance > 1,
            prediction_set=None if answer.set is None else tuple(names[at] for at in answer.set),
        )

    @property
    def _known_limits(self) -> Limits:
        if self.limits is None:
            raise CheckpointError(
                "has no limits, from which prediction sets are computed",
                kind="checkpoint.without_limits",
                to_do=ADD_LIMITS,
            )
        return self.limits

    def logits(
        self, images: Sequence[ImageLike]
    ) -> Iterator[tuple[list[int], Tensor, list[tuple[int, Unreadable]]]]:
        """Yield positions, logits ``(n, classes)`` on the CPU and broken images, per batch."""
        yield from self._computed(images, self._logits, lambda logits: logits)

    def embeddings(self, images: Sequence[ImageLike]) -> Iterator[PhotoEmbeddings]:
        """Yield the embeddings and logits of images, in their order, per batch."""
        classes = len(self.class_names)
        of_batches = self._computed(images, self._logits_and_embedding, lambda output: output)
        for positions, output, broken in of_batches:
            yield PhotoEmbeddings(positions, output[:, classes:], output[:, :classes], broken)

    def features(self, images: Sequence[ImageLike]) -> Iterator[PhotoFeatures]:
        """Yield the features of images, in their order, a few hundred at a time.

        Rows of image files are read from the feature cache if they are there.
        """
        photos = _Photos(images, self._transform, self.levels)
        read = [
            self._rows.read(photos, self._batch_size, view=view)
            for view in range(self._model.num_views)
        ]
        for blocks in zip(*read, strict=True):
            broken = {position: photo for rows in blocks for position, photo in rows.broken}
            # A file may be gone when its mirror image is read.
            kept = [[n for n, at in enumerate(rows.at) if at not in broken] for rows in blocks]
            yield PhotoFeatures(
                [blocks[0].at[number] for number in kept[0]],
                tuple(
                    tensor if len(own) == len(rows.at) else tensor[own]
                    for rows, own in zip(blocks, kept, strict=True)
                    for tensor in rows.features
                ),
                [
                    (position, Unreadable(_name_of(images[position], position), photo.reason))
                    for position, photo in sorted(broken.items())
                ],
            )

    @property
    def feature_counts(self) -> FeatureCounts | None:
        """Rows of features computed and reused so far; None if the run keeps none."""
        return self._rows.counts

    @property
    def _logits(self) -> _Part:
        module = averaging(self._engine.trainable_part, self._model)
        return _Part(module, len(self.class_names))

    @cached_property
    def _logits_and_embedding(self) -> _Part:
        module = self._engine.with_head_input(family_of(self.model_name).head)
        return _Part(averaging(module, self._model), len(self.class_names) + self.dimensions)

    def _computed(
        self, images: Sequence[ImageLike], part: _Part, finish: Callable[[Tensor], _Found]
    ) -> Iterator[tuple[list[int], _Found, list[tuple[int, Unreadable]]]]:
        """Same as `logits`, but apply ``finish`` to the outputs of ``part`` for each batch."""
        size = self._batch_size
        positions: list[int] = []
        rows: list[Features] = []
        broken: list[tuple[int, Unreadable]] = []
        for block in self.features(images):
            broken += block.broken
            positions += block.positions
            rows += [block.features] if block.positions else []
            while len(positions) >= size:
                found, rows = self._run(rows, size, part.module, finish)
                yield positions[:size], found, broken
                positions, broken = positions[size:], []
        if positions:
            yield positions, self._run(rows, len(positions), part.module, finish)[0], broken
        elif broken:
            yield [], finish(torch.empty(0, part.outputs)), broken

    def _run(
        self,
        rows: list[Features],
        size: int,
        module: nn.Module,
        finish: Callable[[Tensor], _Found],
    ) -> tuple[_Found, list[Features]]:
        """Return the result of the first ``size`` rows, and the remaining rows."""

        @torch.no_grad()  # only here: a caller may abandon `stream` halfway
        def compute(rows: list[Features]) -> tuple[_Found, list[Features]]:
            tensors, rest = _cut(rows, size)
            engine = self._engine
            if self._rows.gives_pixels:
                features = tuple(
                    tensor for pixels in tensors for tensor in engine.extractor.features(pixels)
                )
            else:
                features = in_float32(tuple(tensor.to(engine.device) for tensor in tensors))
            output: Tensor = module(*features)
            return finish(output.cpu()), rest

        if self._engine.device.type != "cpu":
            return compute(rows)
        # In a new thread with one torch thread, as in `evaluate`, so that the last bits agree; the
        # caller's thread count may differ. After a fork, OpenMP would also wait forever for
        # threads that exist only in the parent.
        [found] = on_cores(compute, [rows])
        return found


@dataclass(frozen=True)
class _Answer:
    """Answer of the network to one image, with classes as indices.

    Attributes:
        classes: Most probable classes.
        shares: Their probabilities.
        distance: Distance to the training photos; None if no limit is known.
        set: Classes of the prediction set; None if none was asked for.
    """

    classes: list[int]
    shares: list[float]
    distance: float | None
    set: list[int] | None


@dataclass(frozen=True)
class _Part:
    """Module that features are the inputs of, and the number of its outputs for each image."""

    module: nn.Module
    outputs: int


class _Photos:
    """Images that a `RowReader` decodes."""

    def __init__(
        self, images: Sequence[ImageLike], transform: Callable[[Tensor], Tensor], levels: int | None
    ) -> None:
        self._images = images
        self._transform = transform
        self._levels = levels

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, keys: list[Key]) -> list[Sample | Broken]:
        """Decode and transform images."""
        found: list[Sample | Broken] = []
        for position, view in keys:
            image = self._images[position]
            try:
                pixels = self._transform(_decoded(image, self._levels))
                found.append((pixels.flip(2) if view else pixels, 0))
            except Exception as error:  # Pillow may raise any exception on a broken file
                found.append(Broken(Path(_name_of(image, position)), _reason(image, error)))
        return found

    def path(self, position: int) -> str | None:
        """Return the path of an image file, or None for an image in memory."""
        return _path_of(self._images[position])


def open_predictor(
    run: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    keeps: bool = False,
    reporter: Reporter | None = None,
) -> Predictor:
    """Open a run's best checkpoint, or a checkpoint file.

    Args:
        run: Run directory or checkpoint.
        batch_size: Number of images per batch; by default that of training.
        keeps: Whether features of image files are added to the feature cache.
        reporter: Reporter of warnings; silent by default.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or not written by finetune.
    """
    opened = open_run(os.fspath(run), reporter or SilentReporter())
    return Predictor(opened, batch_size=batch_size, keeps=keeps)


def open_run(run: str, reporter: Reporter) -> LoadedNetwork:
    """Load the network of a run's best checkpoint, or of a checkpoint file.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or not written by finetune.
    """
    path = checkpoint_of(run)
    found = read_checkpoint(path)
    none = Images((), (), found.metadata.class_names)
    opened = open_network(path, found.model, found.metadata, none, reporter=reporter)
    return replace(opened, limits=found.limits)


def _several(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    alone = isinstance(images, str | os.PathLike | Image.Image) or (
        (isinstance(images, Tensor) or _is_array(images)) and images.ndim < 4  # type: ignore[union-attr]
    )
    return [images] if alone else list(images)  # type: ignore[list-item, arg-type]


def _error_of(image: Unreadable) -> DataError:
    return DataError(f"cannot be read: {image.reason}", kind="data.undecodable", path=image.path)


def _decoded(image: ImageLike, levels: int | None) -> Tensor:
    """Decode an image to uint8 pixels ``(3, H, W)``."""
    if isinstance(image, str | os.PathLike):
        return read_photo(image, levels)
    if isinstance(image, Image.Image):
        with warnings_ignored(), _loading[id(image) // 64 % len(_loading)]:
            white = load_with_white(image, levels)
            image.getexif()  # also loaded lazily
        return upright_rgb(image, white)
    tensor = image if isinstance(image, Tensor) else _from_array(image)
    if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[0] != 3:
        raise DataError(
            f"pixels must be uint8 of shape (3, H, W), not {tensor.dtype} of {tuple(tensor.shape)}",
            kind="data.invalid_pixels",
        )
    if not tensor.numel():
        raise DataError(
            f"an image of shape {tuple(tensor.shape)} has no pixels", kind="data.invalid_pixels"
        )
    return tensor.cpu()


def _is_array(image: Any) -> bool:
    return type(image).__module__ == "numpy"


def _from_array(image: Any) -> Tensor:
    if not _is_array(image):
        raise DataError(
            f"an image must be a path, a Pillow image, a tensor or an array, not a "
            f"{type(image).__name__}",
            kind="data.invalid_pixels",
        )
    tensor = torch.from_numpy(image.copy())
    return tensor.permute(2, 0, 1) if tensor.dim() == 3 else tensor


def _path_of(image: ImageLike) -> str | None:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _name_of(image: ImageLike, position: int) -> str:
    path = _path_of(image)
    return f"images[{position}]" if path is None else path


def _reason(image: ImageLike, error: Exception) -> str:
    """Return why an image cannot be read."""
    path = _path_of(image)
    if path is None:
        return str(error) or type(error).__name__
    # Use the wording of check-data if it finds the reason too.
    reason = inspect_file(str(Path(path)), full=False).reason
    return reason or (str(error) or type(error).__name__).splitlines()[0]


def _cut(blocks: list[Features], rows: int) -> tuple[Features, list[Features]]:
    """Split blocks into the first ``rows`` rows and the rest."""
    whole = tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))
    rest = tuple(tensor[rows:] for tensor in whole)
    return tuple(tensor[:rows] for tensor in whole), [rest] if len(rest[0]) else []
