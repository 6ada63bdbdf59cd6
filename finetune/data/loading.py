"""Images in batches: the order, the randomness and the decoding, each keyed and none stored."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.config import PreprocessingConfig
from finetune.data.folders import Images
from finetune.data.transforms import build_transform, normalise, read_image
from finetune.data.views import Views
from finetune.errors import DataError
from finetune.keyed import seed_for

Batch = tuple[Tensor, Tensor]
"""Images ``(N, 3, H, W)`` float32 normalised, labels ``(N,)`` int64, on the device."""

Key = tuple[int, int]
"""Index of an image, and which view of it."""
_BYTES_WORTH_A_WORKER = 16 * 2**20
_EPOCHS_APART = 2**20


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded: passed on as a value, since an exception would leave a
    worker process as a traceback."""

    path: Path
    reason: str


class PhotoDataset(Dataset[tuple[Tensor, int] | Unreadable]):
    """uint8 pixels ``(3, crop, crop)`` and label of a view of an image."""

    def __init__(self, images: Images, preprocessing: PreprocessingConfig, views: Views) -> None:
        self.images = images
        self.views = views
        self.transform = build_transform(preprocessing, random_crop=views.policy == "crop_flip")

    def __getitems__(self, keys: list[Key]) -> list[tuple[Tensor, int] | Unreadable]:
        """The views asked for; one image is decoded once for neighbouring views of it."""
        return [
            sample
            for index, group in itertools.groupby(keys, key=lambda key: key[0])
            for sample in self._views_of(index, [view for _, view in group])
        ]

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unreadable:
        return self.__getitems__([key])[0]

    def __len__(self) -> int:
        return len(self.images)

    def _views_of(self, index: int, views: list[int]) -> list[tuple[Tensor, int] | Unreadable]:
        path, label = self.images.paths[index], self.images.labels[index]
        try:
            photo = read_image(path)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return [Unreadable(path, str(error) or type(error).__name__)] * len(views)
        if self.views.are_random:
            return [(self._drawn(photo, index, view), label) for view in views]
        pixels: Tensor = self.transform(photo)
        return [(pixels.flip(2) if view else pixels, label) for view in views]

    def _drawn(self, photo: Image, index: int, view: int) -> Tensor:
        # transforms.v2 draws from torch's global generator and takes no other.
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(self.views.seed_of(index, view))
        try:
            pixels: Tensor = self.transform(photo)
        finally:
            generator.set_state(before)
        return pixels


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

    def __iter__(self) -> Iterator[list[Key]]:
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


def _collate(
    samples: list[tuple[Tensor, int] | Unreadable],
) -> tuple[Tensor, Tensor] | list[Unreadable]:
    broken = [sample for sample in samples if isinstance(sample, Unreadable)]
    if broken:
        return broken
    pixels, labels = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64)


class Batches:
    """The batches of one split, epoch by epoch, decoded anew each time."""

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
    ) -> None:
        self.device = device
        self.preprocessing = preprocessing
        self._sampler = KeyedBatches(
            len(images),
            batch_size,
            views=views,
            shuffle=shuffle,
            balanced=images.labels if images.balanced else None,
        )
        self._loader = photo_loader(
            PhotoDataset(images, preprocessing, views), self._sampler, workers, device
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Raises:
            DataError: names an image that cannot be decoded.
        """
        for pixels, labels in self.pixels(epoch):
            images = normalise(pixels.to(self.device, non_blocking=True), self.preprocessing)
            yield images, labels.to(self.device, non_blocking=True)

    def pixels(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """As `epoch`, before normalisation: uint8 pixels and labels, on the CPU."""
        self._sampler.epoch = epoch
        yield from readable(self._loader)


def photo_loader(
    dataset: PhotoDataset, batches: Iterable[list[Key]], workers: int, device: torch.device
) -> Iterable[tuple[Tensor, Tensor] | list[Unreadable]]:
    """torch's loader over batches of keys."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def readable(
    loader: Iterable[tuple[Tensor, Tensor] | list[Unreadable]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass on pixels ``(N, 3, H, W)`` uint8 and labels.

    Raises:
        DataError: names an image that cannot be decoded.
    """
    for loaded in loader:
        if isinstance(loaded, list):
            broken = loaded[0]
            raise DataError(
                f"{broken.path}: cannot be decoded ({broken.reason}); "
                "repair it, or move it out of the class folder"
            )
        yield loaded


def resolve_workers(workers: int | str, images: Images) -> int:
    """How many decoding processes ``data.workers`` means for this much data.

    Decoding a small set costs less than starting a process for it.
    """
    if isinstance(workers, int):
        return workers
    if images.num_bytes < _BYTES_WORTH_A_WORKER:
        return 0
    return min(8, os.cpu_count() or 1)
