"""Dataset and batches of decoded images.

Order and augmentation are functions of keys, so that no random state has to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.config.schema import PreprocessingConfig
from finetune.core.errors import UnreadableError
from finetune.core.signals import leave_to_the_parent
from finetune.core.threads import on_cores
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.images import Images, lasts
from finetune.data.loading.decoding import read_photo
from finetune.data.loading.rng import drawn_from
from finetune.data.loading.sampler import Key, KeyedBatches, by_image
from finetune.data.loading.transforms import build_draw, build_fit
from finetune.data.loading.views import Views
from finetune.data.loading.workers import BATCHES_AHEAD, InSharedMemory, InWorkers
from finetune.distributed.ranks import ALONE, Ranks

Batch = tuple[Tensor, Tensor]
"""Pixels ``(N, 3, crop, crop)`` uint8 and labels ``(N,)`` int64, on the CPU."""
Sample = tuple[Tensor, int]
"""Pixels ``(3, crop, crop)`` uint8 and label."""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded.

    Passed on as a value, because an exception would leave a worker process as a traceback.
    """

    path: Path
    reason: str
    lasting: bool = True
    """Whether the error is permanent; a system error may be temporary."""

    @classmethod
    def because(cls, path: Path, error: Exception) -> Unreadable:
        """Describe the exception that a decoder raised."""
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # Pillow names our buffer, and no cause
            text = inspect_file(str(path), full=False).reason or "is not an image"
        return cls(path, str(text).splitlines()[0], lasting=lasts(error))


class PhotoDataset(Dataset[Sample | Unreadable]):
    """Dataset of views of images, decoded on access.

    Args:
        keep_bytes: Memory in bytes for decoded pixels before the first random transform, kept for
            later views. Images that do not fit are decoded again.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: PreprocessingConfig,
        views: Views,
        *,
        keep_bytes: int = 0,
    ) -> None:
        self.images = images
        self.views = views
        self.levels = preprocessing.levels
        self.fit = build_fit(preprocessing)
        self.draw, self._draws_from_photo = build_draw(preprocessing, views)
        self._kept: dict[int, Tensor] = {}
        self._room = keep_bytes

    def __getitems__(self, keys: list[Key]) -> list[Sample | Unreadable]:
        """Return the requested views; an image is decoded once for adjacent views of it."""
        return [sample for index, views in by_image(keys) for sample in self.views_of(index, views)]

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        return self.__getitems__([key])[0]

    def __len__(self) -> int:
        return len(self.images)

    def views_of(self, index: int, views: list[int]) -> list[Sample | Unreadable]:
        """Return views of an image; may be called from several threads."""
        path, label = self.images.paths[index], self.images.labels[index]
        try:
            pixels = self._before_drawing(index)
            if self.views.are_random:
                return [(self._drawn(pixels, index, view), label) for view in views]
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return [Unreadable.because(path, error)] * len(views)
        return [(pixels.flip(2) if view else pixels, label) for view in views]

    def _before_drawing(self, index: int) -> Tensor:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        pixels = read_photo(self.images.paths[index], self.levels)
        if not self._draws_from_photo:
            pixels = self.fit(pixels)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[index] = pixels
        return pixels

    def _drawn(self, pixels: Tensor, index: int, view: int) -> Tensor:
        with drawn_from(self.views.seed_of(self.images.paths[index], index, view)):
            drawn: Tensor = self.draw(pixels)
        return drawn


def collate(samples: list[Sample | Unreadable]) -> Batch | list[Unreadable]:
    """Return one batch, or the images of it that could not be decoded."""
    broken = [sample for sample in samples if isinstance(sample, Unreadable)]
    if broken:
        return broken
    if not samples:  # the share of a process in a batch of fewer rows than processes
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    pixels, labels = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64)


class Batches:
    """Batches of one split, epoch by epoch."""

    def __init__(
        self,
        dataset: PhotoDataset,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        shuffle: bool = False,
        ranks: Ranks = ALONE,
        previous_row: bool = False,
    ) -> None:
        """Create the batches; the last two arguments are those of `KeyedBatches`."""
        self._images = images = dataset.images
        self._sampler = KeyedBatches(
            len(images),
            batch_size,
            views=dataset.views,
            shuffle=shuffle,
            balanced=images.labels if images.balanced else None,
            ranks=ranks,
            previous_row=previous_row,
        )
        self._loader = photo_loader(dataset, self._sampler, workers, device)

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def sizes(self) -> list[int]:
        """Number of images in each whole batch of an epoch."""
        return self._sampler.sizes

    @property
    def previous_row(self) -> bool:
        """Whether a batch begins with the row before this process's share."""
        return self._sampler.previous_row

    def keys(self, epoch: int = 0, start: int = 0) -> list[list[Key]]:
        """Return the keys of each batch of one epoch, from batch ``start`` on."""
        self._sampler.epoch, self._sampler.start = epoch, start
        return list(self._sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from batch ``start`` on.

        Raises:
            UnreadableError: Images of a batch cannot be decoded; the error names them.
        """
        self._sampler.epoch, self._sampler.start = epoch, start
        yield from readable(self._loader)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the paths of the images of one batch (0-based)."""
        return self._sampler.files(self._images, epoch, batch)


def photo_loader(
    dataset: PhotoDataset, batches: Iterable[list[Key]], workers: int, device: torch.device
) -> Iterable[Batch | list[Unreadable]]:
    """Return an iterable that decodes batches of keys in worker processes or in threads."""
    if workers == 0:
        return _InThreads(dataset, batches, device)
    return InWorkers(
        DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD,
            collate_fn=InSharedMemory(collate),
            worker_init_fn=leave_to_the_parent,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
    )


class _InThreads:
    """Decoder of batches in threads; the decoders release the GIL.

    A worker process would take a second to start and its own copy of torch in memory. Nothing is
    decoded ahead: if the CPU also computes, that would take cores from the computation.
    """

    def __init__(
        self, dataset: PhotoDataset, batches: Iterable[list[Key]], device: torch.device
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.pinned = device.type == "cuda"

    def __iter__(self) -> Iterator[Batch | list[Unreadable]]:
        for keys in self.batches:
            views = on_cores(lambda image: self.dataset.views_of(*image), list(by_image(keys)))
            batch = collate([sample for samples in views for sample in samples])
            if self.pinned and isinstance(batch, tuple):
                batch = batch[0].pin_memory(), batch[1].pin_memory()
            yield batch


def readable(batches: Iterable[Batch | list[Unreadable]]) -> Iterator[Batch]:
    """Yield the decoded batches.

    Raises:
        UnreadableError: Images of a batch cannot be decoded; the error names them.
    """
    for batch in batches:
        if isinstance(batch, list):
            raise unreadable(batch)
        yield batch


def unreadable(broken: Iterable[Unreadable]) -> UnreadableError:
    """Return, but do not raise, an error that names each image once."""
    images = list({image.path: image for image in broken}.values())
    return UnreadableError(
        [(image.path, image.reason) for image in images],
        passing={image.path for image in images if not image.lasting},
    )
