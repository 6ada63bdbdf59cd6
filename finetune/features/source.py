"""Batches of features: read from a feature store, or computed for each batch.

The training loop receives the trainable part and batches of features, whether these come from a
store, from the frozen prefix, or are the images themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.config.schema import FeaturesConfig
from finetune.core.cores import available_cores
from finetune.core.device import versions
from finetune.core.errors import OutputError, UnreadableError
from finetune.core.files import sha256_of, state_of
from finetune.core.memory import release_memory
from finetune.core.reporter import Reporter
from finetune.core.signals import unless_asked
from finetune.core.threads import one_thread_a_core
from finetune.data.images import Images
from finetune.data.loading.dataloader import (
    Batches,
    PhotoDataset,
    Unreadable,
    collate,
    photo_loader,
    unreadable,
)
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.sampler import Key, KeyedBatches
from finetune.data.loading.views import Views
from finetune.features.cache_policy import layout_of
from finetune.features.extractor import FeatureExtractor, as_features, joined
from finetune.features.store import ORIGIN, FeatureStore, Layout, cache_root, disk_limit, make_room
from finetune.freezing.graph_split import Features

FeatureBatch = tuple[Features, Tensor]
"""Input of the trainable part, and labels, on the device.

Labels are class indices ``(N,)`` int64, or class probabilities of mixed images,
``(N, num_classes)`` float32.
"""


class FeatureBatches(Protocol):
    """Batches of features of one split.

    Attributes:
        from_earlier: Whether all features were already cached by an earlier run.
    """

    from_earlier: bool

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""


class FreshFeatures:
    """Features computed for each batch; without a prefix, the images themselves."""

    from_earlier = False

    def __init__(
        self, batches: Batches, extractor: FeatureExtractor, mixing: Mixing | None = None
    ) -> None:
        self.batches = batches
        self.extractor = extractor
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.batches)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""
        return self.batches.files(epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""
        device = self.extractor.device
        for number, (pixels, labels) in enumerate(self.batches.epoch(epoch, start), start):
            labels = labels.to(device, non_blocking=True)
            if self.mixing is not None:
                pixels = pixels.to(device, non_blocking=True)
                pixels, labels = self.mixing(pixels, labels, epoch=epoch, number=number)
            yield self.extractor.features(pixels), labels


class CachedFeatures:
    """Features read from a complete store.

    Args:
        first_rows: First row of each image in the store; None if the store contains exactly these
            images and views.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: Images,
        *,
        batch_size: int,
        views: Views,
        shuffle: bool,
        device: torch.device,
        first_rows: Tensor | None = None,
    ) -> None:
        assert views.count is not None
        self.from_earlier = store.computed == 0
        self.store = store
        self.images = images
        self.views = views
        self.device = device
        self._first_rows = (
            torch.arange(len(images)) * views.count if first_rows is None else first_rows
        )
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

    def files(self, epoch: int, batch: int) -> list[Path]:
        """Return the image files of a batch, by its index from 0."""
        return self._batches.files(self.images, epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield the batches of an epoch, starting at index ``start``."""
        self._batches.epoch, self._batches.start = epoch, start
        for keys in self._batches:
            at, views = torch.tensor(keys).unbind(dim=1)
            rows = self._first_rows[at] + views
            features = tuple(t.to(self.device) for t in self.store.take(rows))
            yield as_features(features), self._labels[at].to(self.device)

    def part(self, positions: Sequence[int], *, batch_size: int, training: bool) -> CachedFeatures:
        """Return the batches of some of these images, from the same store.

        Args:
            positions: Indices of the images.
            training: True shuffles and uses the views of this source; False keeps the order and
                uses the first view of each image.
        """
        return CachedFeatures(
            self.store,
            self.images.subset(positions),
            batch_size=batch_size,
            views=self.views if training else Views.of("none"),
            shuffle=training,
            device=self.device,
            first_rows=self._first_rows[torch.tensor(positions)],
        )


def filled_store(
    config: FeaturesConfig,
    cache: str,
    extractor: FeatureExtractor,
    images: Images,
    views: Views,
    *,
    workers: int,
    what: str,
    seconds: float | None,
    reporter: Reporter,
) -> FeatureStore:
    """Return a complete store; missing features are computed.

    Args:
        cache: Resolved ``features.cache``: disk or memory.
        what: Name of the split in messages.
        seconds: Measured time per row; None if unknown.

    Raises:
        OutputError: the disk is full or not writable.
        UnreadableError: images cannot be decoded; the message names all of them.
    """
    assert views.count is not None
    layout = layout_of(extractor, len(images), views.count)
    try:
        store = _open_store(config, cache, extractor, images, views, layout)
        if store.damaged:
            reporter.warn(f"{store.folder}: damaged features found; computing them again")
        if store.missing:
            _fill(store, extractor, images, views, workers, what, seconds, reporter)
    except OSError as error:
        where = config.dir or error.filename or "features.cache"
        raise OutputError(
            f"features cannot be cached: {error.strerror or error}",
            kind="output.cache_unwritable",
            path=where,
            to_do="choose another folder with --set features.dir=FOLDER, or disable the cache "
            "with --set features.cache=off",
        ) from error
    return store


def _open_store(
    config: FeaturesConfig,
    cache: str,
    extractor: FeatureExtractor,
    images: Images,
    views: Views,
    layout: Layout,
) -> FeatureStore:
    if cache == "memory":
        return FeatureStore(layout, None, {})
    description = {
        "identity": extractor.identity,
        "preprocessing": extractor.preprocessing.model_dump_json(),
        "views": f"{views.name} {views.count}",
        "seed": str(views.seed) if views.are_random else "",
        "form": f"{extractor.form} on {extractor.device.type} by {extractor.rows}",
        "files": _files_digest(images, config.known_by),
        "versions": json.dumps(versions()),
    }
    key = hashlib.sha256(json.dumps([description, asdict(layout)]).encode()).hexdigest()[:32]
    root = cache_root(config.dir)
    if not (root / key).exists():
        make_room(root, layout.num_bytes, limit=disk_limit(root))
    # For `finetune cache list` only; not part of the key, so that moved images keep their features.
    description[ORIGIN] = str(Path(images.paths[0]).parent.parent)
    return FeatureStore(layout, root / key, description)


def _files_digest(images: Images, known_by: str) -> str:
    """Return a digest of all files, by path and state (`state_of`) or by content."""
    digest = hashlib.sha256()
    for path in images.paths:
        try:
            if known_by == "content":
                digest.update(sha256_of(path).encode())
            else:
                text = f"{path.absolute()}\0{state_of(path.stat())}\n"
                digest.update(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            # The same error as for decoding; an OSError would be reported as one of the store.
            raise UnreadableError([(path, error.strerror or str(error))], passing={path}) from error
    return digest.hexdigest()


def _fill(
    store: FeatureStore,
    extractor: FeatureExtractor,
    images: Images,
    views: Views,
    workers: int,
    what: str,
    seconds: float | None,
    reporter: Reporter,
) -> None:
    assert views.count is not None
    layout = store.layout
    missing = store.missing
    keys = [_keys_of(layout, block, views.count) for block in missing]
    dataset = PhotoDataset(images, extractor.preprocessing, views)
    release_memory()  # filling the store is the peak of a run's memory use
    if workers or extractor.device.type != "cpu":
        blocks = _computed_here(dataset, keys, extractor, workers)
    else:
        blocks = _computed_in_threads(dataset, keys, extractor)
    known = ""
    if seconds is not None:
        expected = seconds * len(keys) * layout.block_rows
        known = f", about {expected:,.0f} s" if expected >= 1 else ", under a second"
    reporter.say(
        f"{what}: frozen features of {len(images):,} images in {views.count} "
        f"{'view' if views.count == 1 else 'views'} are computed once: "
        f"{layout.num_bytes / 2**20:,.1f} MiB{known}"
    )
    blocks = unless_asked(blocks)
    tracked = reporter.track(blocks, f"{what} features", total=len(keys))
    broken: list[Unreadable] = []
    for block, features in zip(missing, tracked, strict=True):
        if isinstance(features, list):
            broken += features
        else:
            store.put(block, [tensor.cpu() for tensor in features])
    if broken:
        raise unreadable(broken)


_Block = tuple[Tensor, ...] | list[Unreadable]


def _computed_here(
    dataset: PhotoDataset,
    keys: list[list[Key]],
    extractor: FeatureExtractor,
    workers: int,
) -> Iterator[_Block]:
    """Yield the blocks in order; worker processes decode ahead."""
    for batch in photo_loader(dataset, keys, min(workers, len(keys)), extractor.device):
        yield batch if isinstance(batch, list) else extractor(batch[0])


def _computed_in_threads(
    dataset: PhotoDataset, keys: list[list[Key]], extractor: FeatureExtractor
) -> Iterator[_Block]:
    """Yield the blocks in order; each core decodes and computes a different block."""

    def compute(block: list[Key]) -> _Block:
        """Decode and compute a block in micro-batches, to limit the memory used by pixels."""
        broken: list[Unreadable] = []
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, len(block), extractor.rows):
            batch = collate(dataset.__getitems__(block[start : start + extractor.rows]))
            if isinstance(batch, list):
                broken += batch
            elif not broken:
                parts.append(extractor.in_this_thread(batch[0]))
        return broken or joined(parts)

    with one_thread_a_core(len(keys)) as pool:
        waiting: deque[Future[_Block]] = deque()
        try:
            for block in keys:
                waiting.append(pool.submit(compute, block))
                if len(waiting) > 2 * available_cores():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _keys_of(layout: Layout, block: int, views: int) -> list[Key]:
    rows = layout.rows_of(block)
    return [divmod(row, views) for row in range(rows.start, rows.stop)]
