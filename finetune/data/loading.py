"""Images in batches: the order, the randomness and the decoding, each keyed and none stored."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.config import PreprocessingConfig
from finetune.data.decoding import read_photo
from finetune.data.drawing import drawn_from
from finetune.data.images import Images, lasts
from finetune.data.look import look_at
from finetune.data.transforms import build_draw, build_fit
from finetune.data.views import Views
from finetune.data.workers import BATCHES_AHEAD, InSharedMemory, InWorkers
from finetune.errors import UnreadableError
from finetune.keyed import seed_for
from finetune.runtime import on_cores
from finetune.stopping import leave_to_the_parent

Batch = tuple[Tensor, Tensor]
"""Pixels ``(N, 3, crop, crop)`` uint8, labels ``(N,)`` int64, on the CPU."""

Key = tuple[int, int]
"""Index of an image, and which view of it."""
Sample = tuple[Tensor, int]
"""uint8 pixels ``(3, crop, crop)`` and label."""

_EPOCHS_APART = 2**20


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded: passed on as a value, since an exception would leave a
    worker process as a traceback."""

    path: Path
    reason: str
    lasting: bool = True
    """The same file would fail at another time as well; what the system refuses may pass."""

    @classmethod
    def because(cls, path: Path, error: Exception) -> Unreadable:
        """What a decoder raised, put into words."""
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # Pillow names a buffer of ours, and no cause
            text = look_at(str(path), full=False).reason or "is no image"
        return cls(path, str(text).splitlines()[0], lasting=lasts(error))


class PhotoDataset(Dataset[Sample | Unreadable]):
    """The views of images, decoded when asked for.

    Args:
        keep_bytes: Memory for what has been decoded, where it will be needed again: the pixels
            before the first random step. What does not fit is decoded again.
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
        """The views asked for; one image is decoded once for neighbouring views of it."""
        return [sample for index, views in by_image(keys) for sample in self.views_of(index, views)]

    def __getitem__(self, key: Key) -> Sample | Unreadable:
        return self.__getitems__([key])[0]

    def __len__(self) -> int:
        return len(self.images)

    def views_of(self, index: int, views: list[int]) -> list[Sample | Unreadable]:
        """These views of an image; may be called from several threads."""
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
        with drawn_from(self.views.seed_of(index, view)):
            drawn: Tensor = self.draw(pixels)
        return drawn


def by_image(keys: list[Key]) -> Iterator[tuple[int, list[int]]]:
    """Neighbouring keys of one image: its index, and the views of it."""
    for index, group in itertools.groupby(keys, key=lambda key: key[0]):
        yield index, [view for _, view in group]


class KeyedBatches(Sampler[list[Key]]):
    """Images and views in batches; order and views are functions of seed and epoch."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        views: Views,
        shuffle: bool,
        balanced: Sequence[int] | None = None,
    ) -> None:
        """``balanced``: labels, where an epoch is to draw every class equally often."""
        self.count = count
        self.balanced = None if balanced is None else torch.tensor(balanced)
        self.batch_size = batch_size
        self.views = views
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0
        """Batches of the epoch that are passed over."""

    def __iter__(self) -> Iterator[list[Key]]:
        return itertools.islice(self._all(), self.start, None)

    def _all(self) -> Iterator[list[Key]]:
        if self.shuffle:
            seed = seed_for(self.views.seed, "order", self.epoch)
            generator = torch.Generator().manual_seed(seed)
            if self.balanced is None:
                order = torch.randperm(self.count, generator=generator).tolist()
            else:
                order = _balanced_draw(self.balanced, generator)
        else:
            order = list(range(self.count))
        start = 0
        drawn: Counter[int] = Counter()
        for size in batch_sizes(self.count, self.batch_size, join_last_of_one=self.shuffle):
            chosen = order[start : start + size]
            yield [(index, self._view(index, drawn)) for index in chosen]
            start += size

    def __len__(self) -> int:
        return len(batch_sizes(self.count, self.batch_size, join_last_of_one=self.shuffle))

    def files(self, images: Images, epoch: int, batch: int) -> list[Path]:
        """The images of one batch, counted from 0."""
        self.epoch, self.start = epoch, batch
        return [images.paths[index] for index, _ in next(iter(self))]

    def _view(self, index: int, drawn: Counter[int]) -> int:
        """An image that comes again within an epoch comes as if in an epoch of its own."""
        again = drawn[index]
        if self.balanced is not None:
            drawn[index] += 1
        return self.views.pick(self.epoch + again * _EPOCHS_APART, index)


def _balanced_draw(labels: Tensor, generator: torch.Generator) -> list[int]:
    """As many positions as there are labels, with replacement: first a class, then one of it."""
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    present = counts.nonzero()[:, 0]
    starts = counts.cumsum(0) - counts
    chosen = present[torch.randint(len(present), (len(labels),), generator=generator)]
    share = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    within = (share * counts[chosen]).long()
    positions: list[int] = by_class[starts[chosen] + within].tolist()
    return positions


def batch_sizes(count: int, batch_size: int, *, join_last_of_one: bool) -> list[int]:
    """How many images each batch holds.

    Args:
        join_last_of_one: Let a last batch of one join the one before: a norm layer cannot train
            on a single value, and no image is dropped.
    """
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest else [])
    if join_last_of_one and rest == 1 and whole:
        sizes[-2:] = [batch_size + 1]
    return sizes


def collate(samples: list[Sample | Unreadable]) -> Batch | list[Unreadable]:
    """One batch; or what of it could not be decoded."""
    broken = [sample for sample in samples if isinstance(sample, Unreadable)]
    if broken:
        return broken
    pixels, labels = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64)


class Batches:
    """The batches of one split, epoch by epoch.

    Args:
        keep_bytes: Memory for decoded images, where several epochs need them.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: PreprocessingConfig,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        views: Views,
        shuffle: bool = False,
        keep_bytes: int = 0,
    ) -> None:
        self._images = images
        self._sampler = KeyedBatches(
            len(images),
            batch_size,
            views=views,
            shuffle=shuffle,
            balanced=images.labels if images.balanced else None,
        )
        # A worker process would keep what another one is asked for in the next epoch.
        kept = 0 if workers else keep_bytes
        dataset = PhotoDataset(images, preprocessing, views, keep_bytes=kept)
        self._loader = photo_loader(dataset, self._sampler, workers, device)

    def __len__(self) -> int:
        return len(self._sampler)

    def keys(self, epoch: int = 0, start: int = 0) -> list[list[Key]]:
        """Images and views of each batch of one epoch, from batch ``start`` on."""
        self._sampler.epoch, self._sampler.start = epoch, start
        return list(self._sampler)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch ``start`` on.

        Raises:
            UnreadableError: names the images of a batch that cannot be decoded.
        """
        self._sampler.epoch, self._sampler.start = epoch, start
        yield from readable(self._loader)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """The images of one batch, counted from 0."""
        return self._sampler.files(self._images, epoch, batch)


def photo_loader(
    dataset: PhotoDataset, batches: Iterable[list[Key]], workers: int, device: torch.device
) -> Iterable[Batch | list[Unreadable]]:
    """Batches of keys, decoded: in worker processes, or in threads of this one."""
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
    """Decodes each batch in threads: the decoders let other threads run while they work.

    A process for it would take a second to start and its own copy of torch in memory. Nothing is
    decoded ahead: where the CPU also computes, that would take its cores from the computation.
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
    """Pass on what was decoded.

    Raises:
        UnreadableError: names the images of a batch that cannot be decoded.
    """
    for batch in batches:
        if isinstance(batch, list):
            raise unreadable(batch)
        yield batch


def unreadable(broken: Iterable[Unreadable]) -> UnreadableError:
    """The error that names each image once; not raised."""
    images = list({image.path: image for image in broken}.values())
    return UnreadableError(
        [(image.path, image.reason) for image in images],
        passing={image.path for image in images if not image.lasting},
    )
