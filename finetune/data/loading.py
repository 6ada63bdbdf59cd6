"""Images in batches: the order, the randomness and the decoding, each keyed and none stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from finetune.config import PreprocessingConfig
from finetune.data.folders import Images
from finetune.data.transforms import build_transform, normalise, read_image
from finetune.errors import DataError
from finetune.keyed import seed_for

Batch = tuple[Tensor, Tensor]
"""Images ``(N, 3, H, W)`` float32 normalised, labels ``(N,)`` int64, on the device."""

_Key = tuple[int, int]  # epoch, index
_BYTES_WORTH_A_WORKER = 16 * 2**20


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded: passed on as a value, since an exception would leave a
    worker process as a traceback."""

    path: Path
    reason: str


class _PhotoDataset(Dataset[tuple[Tensor, int] | Unreadable]):
    def __init__(self, images: Images, transform: v2.Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: _Key) -> tuple[Tensor, int] | Unreadable:
        epoch, index = key
        path = self.images.paths[index]
        try:
            photo = read_image(path)
        except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
            return Unreadable(path, str(error) or type(error).__name__)
        # transforms.v2 draws from torch's global generator and takes no other.
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(seed_for(self.seed, "augment", epoch, index))
        try:
            pixels = self.transform(photo)
        finally:
            generator.set_state(before)
        return pixels, self.images.labels[index]

    def __len__(self) -> int:
        return len(self.images)


class _KeyedBatches(Sampler[list[_Key]]):
    """Positions in batches; the order is a function of seed and epoch."""

    def __init__(self, count: int, batch_size: int, *, seed: int, shuffle: bool) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __iter__(self) -> Iterator[list[_Key]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", self.epoch))
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = list(range(self.count))
        start = 0
        for size in batch_sizes(self.count, self.batch_size, join_last_of_one=self.shuffle):
            yield [(self.epoch, index) for index in order[start : start + size]]
            start += size

    def __len__(self) -> int:
        return len(batch_sizes(self.count, self.batch_size, join_last_of_one=self.shuffle))


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
    """The batches of one split, epoch by epoch."""

    def __init__(
        self,
        images: Images,
        preprocessing: PreprocessingConfig,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        policy: str = "none",
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.device = device
        self.preprocessing = preprocessing
        self._sampler = _KeyedBatches(len(images), batch_size, seed=seed, shuffle=shuffle)
        self._loader = DataLoader(
            _PhotoDataset(images, build_transform(preprocessing, policy), seed),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Raises:
            DataError: names an image that cannot be decoded.
        """
        self._sampler.epoch = epoch
        for loaded in self._loader:
            if isinstance(loaded, list):
                broken = loaded[0]
                raise DataError(
                    f"{broken.path}: cannot be decoded ({broken.reason}); "
                    "repair it, or move it out of the class folder"
                )
            pixels, labels = loaded
            images = normalise(pixels.to(self.device, non_blocking=True), self.preprocessing)
            yield images, labels.to(self.device, non_blocking=True)


def resolve_workers(workers: int | str, images: Images) -> int:
    """How many decoding processes ``data.workers`` means for this much data.

    Decoding a small set costs less than starting a process for it.
    """
    if isinstance(workers, int):
        return workers
    if images.num_bytes < _BYTES_WORTH_A_WORKER:
        return 0
    return min(8, os.cpu_count() or 1)
