"""Frozen features in place of images: computed once for each view, or anew for each batch.

The loop is handed the live part and batches of features; it cannot tell whether they come from a
store, from the prefix, or are the images themselves.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.config import FeaturesConfig, PreprocessingConfig
from finetune.data.folders import Images
from finetune.data.loading import (
    Batches,
    Key,
    KeyedBatches,
    PhotoDataset,
    photo_loader,
    readable,
)
from finetune.data.transforms import normalise
from finetune.data.views import Views
from finetune.errors import OutputError
from finetune.feature_cache import (
    FeatureStore,
    Layout,
    cache_root,
    disk_limit,
    make_room,
)
from finetune.form import Form
from finetune.progress import Progress
from finetune.runtime import available_memory_bytes, versions
from finetune.split import WORTH_KEEPING_BYTES, Features, Split

BLOCK_ROWS = 32
"""Rows computed together: a value depends on its batch in the last bits, so batches are fixed."""

FeatureBatch = tuple[Features, Tensor]
"""Input of the live part, and labels ``(N,)`` int64, on the device."""


class Source(Protocol):
    """The batches of one split."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch."""


@dataclass(frozen=True)
class Computation:
    """Everything that decides a feature's value, beside the image.

    Attributes:
        identity: SHA-256 of the frozen weights and of the prefix's graph.
    """

    split: Split
    form: Form
    preprocessing: PreprocessingConfig
    device: torch.device
    identity: str

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of uint8 pixels ``(N, 3, H, W)``, as the prefix gives them."""
        assert self.split.prefix is not None
        images = normalise(pixels.to(self.device, non_blocking=True), self.preprocessing)
        images = images.to(self.form.dtype).contiguous(memory_format=self.form.layout)
        features = self.split.prefix(images)
        return (features,) if isinstance(features, Tensor) else features


def frozen_identity(split: Split, frozen: dict[str, str]) -> str:
    """What the frozen prefix is: its graph, and the hashes of every frozen tensor."""
    graph = getattr(split.prefix, "graph", None)
    text = json.dumps([str(getattr(graph, "code", None)), sorted(frozen.items())])
    return hashlib.sha256(text.encode()).hexdigest()


class WholeImages:
    """Without a prefix: images in the form's layout."""

    def __init__(self, batches: Batches, form: Form) -> None:
        self.batches = batches
        self.form = form

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch."""
        for images, labels in self.batches.epoch(epoch):
            yield images.contiguous(memory_format=self.form.layout), labels


class PrefixBatches:
    """Features computed anew for each batch."""

    def __init__(self, batches: Batches, computation: Computation) -> None:
        self.batches = batches
        self.computation = computation

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch."""
        for pixels, labels in self.batches.pixels(epoch):
            yield _features(self.computation(pixels)), labels.to(self.computation.device)


class CachedFeatures:
    """Features from a store that is whole."""

    def __init__(
        self,
        store: FeatureStore,
        images: Images,
        *,
        batch_size: int,
        views: Views,
        shuffle: bool,
        device: torch.device,
    ) -> None:
        assert views.count is not None
        self.store = store
        self.device = device
        self._views_each = views.count
        self._labels = torch.tensor(images.labels, dtype=torch.int64)
        self._batches = KeyedBatches(
            len(images),
            batch_size,
            views=views,
            shuffle=shuffle,
            balanced=images.labels if images.balanced else None,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch."""
        self._batches.epoch = epoch
        for keys in self._batches:
            rows = torch.tensor([index * self._views_each + view for index, view in keys])
            features = tuple(t.to(self.device) for t in self.store.take(rows))
            labels = self._labels[torch.tensor([index for index, _ in keys])]
            yield _features(features), labels.to(self.device)


def _features(tensors: tuple[Tensor, ...]) -> Features:
    """What the live part takes: float32, a tuple only where several tensors cross."""
    exact = tuple(tensor.float() for tensor in tensors)
    return exact[0] if len(exact) == 1 else exact


def layout_of(computation: Computation, num_images: int, views: int) -> Layout:
    """How the features of a split are stored."""
    return Layout(
        rows=num_images * views,
        shapes=computation.split.crossing,
        dtype=computation.form.precision,
        block_rows=max(BLOCK_ROWS // views, 1) * views,
    )


def image_bytes(split: Split, form: Form) -> int:
    """Size of one image's features."""
    return sum(torch.Size(shape).numel() for shape in split.crossing) * form.dtype.itemsize


def decide_cache(
    config: FeaturesConfig, computation: Computation, rows_bytes: int, *, progress: Progress
) -> str:
    """What ``auto`` means for so many bytes: disk, memory or off; says why it is off."""
    if config.cache != "auto":
        return config.cache
    size = image_bytes(computation.split, computation.form)
    if size > WORTH_KEEPING_BYTES:
        progress.say(
            f"features of {size / 2**20:.1f} MiB an image cost more to keep than to compute "
            "again: not cached"
        )
        return "off"
    if rows_bytes <= disk_limit(cache_root(config.dir)):
        return "disk"
    if rows_bytes <= available_memory_bytes() // 4:
        return "memory"
    progress.say(
        f"features would take {rows_bytes / 2**30:.1f} GiB, more than a tenth of the free disk "
        "and a quarter of the memory: not cached; features.dir may name a larger disk"
    )
    return "off"


def filled_store(
    config: FeaturesConfig,
    cache: str,
    computation: Computation,
    images: Images,
    views: Views,
    *,
    workers: int,
    what: str,
    progress: Progress,
) -> FeatureStore:
    """A whole store: what is missing in it is computed.

    Raises:
        OutputError: the disk is full or cannot be written.
        DataError: an image cannot be decoded.
    """
    assert views.count is not None
    layout = layout_of(computation, len(images), views.count)
    try:
        store = _open_store(config, cache, computation, images, views, layout)
        if store.damaged:
            progress.warn(f"{store.folder}: damaged features found; they are computed again")
        if store.missing:
            _fill(store, computation, images, views, workers, what, progress)
    except OSError as error:
        raise OutputError(
            f"features cannot be kept: {error.strerror or error}; --set features.dir=FOLDER names "
            "another place, --set features.cache=off does without"
        ) from error
    return store


def _open_store(
    config: FeaturesConfig,
    cache: str,
    computation: Computation,
    images: Images,
    views: Views,
    layout: Layout,
) -> FeatureStore:
    if cache == "memory":
        return FeatureStore(layout, None, {})
    description = {
        "identity": computation.identity,
        "preprocessing": computation.preprocessing.model_dump_json(),
        "views": f"{views.policy} {views.count}",
        "seed": str(views.seed) if views.are_random else "",
        "form": f"{computation.form} on {computation.device.type}",
        "files": _files_digest(images),
        "versions": json.dumps(versions()),
        "root": str(Path(images.paths[0]).parent.parent),
    }
    key = hashlib.sha256(json.dumps([description, asdict(layout)]).encode()).hexdigest()[:32]
    root = cache_root(config.dir)
    if not (root / key).exists():
        make_room(root, layout.num_bytes, limit=disk_limit(root), keep=root / key)
    return FeatureStore(layout, root / key, description)


def _files_digest(images: Images) -> str:
    """Of every file's path, size and time of change: what `make` goes by as well."""
    digest = hashlib.sha256()
    for path in images.paths:
        status = path.stat()
        digest.update(
            f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()


def _fill(
    store: FeatureStore,
    computation: Computation,
    images: Images,
    views: Views,
    workers: int,
    what: str,
    progress: Progress,
) -> None:
    assert views.count is not None
    layout = store.layout
    missing = store.missing
    keys = [_keys_of(layout, block, views.count) for block in missing]
    dataset = PhotoDataset(images, computation.preprocessing, views)
    loader = photo_loader(dataset, keys, min(workers, len(keys)), computation.device)
    tracked = progress.track(readable(loader), f"{what} features", total=len(keys))
    start = time.perf_counter()
    for number, (block, (pixels, _)) in enumerate(zip(missing, tracked, strict=True)):
        features = computation(_padded(pixels, layout.block_rows))
        store.put(block, [tensor[: len(pixels)].cpu() for tensor in features])
        if number == 0:
            seconds = (time.perf_counter() - start) * len(keys)
            progress.say(
                f"{what}: frozen features of {len(images):,} images in {views.count} "
                f"{'view' if views.count == 1 else 'views'} are computed once: "
                f"{layout.num_bytes / 2**20:,.1f} MiB, about {seconds:,.0f} s"
            )


def _keys_of(layout: Layout, block: int, views: int) -> list[Key]:
    rows = layout.rows_of(block)
    return [divmod(row, views) for row in range(rows.start, rows.stop)]


def _padded(pixels: Tensor, rows: int) -> Tensor:
    """The last block, filled up, so that every block is computed at one size."""
    lacking = rows - len(pixels)
    return torch.cat([pixels, pixels[-1:].expand(lacking, -1, -1, -1)]) if lacking else pixels
