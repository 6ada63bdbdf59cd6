"""Frozen features in place of images: computed once for each view, or anew for each batch.

The loop is handed the live part and batches of features; it cannot tell whether they come from a
store, from the prefix, or are the images themselves.
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

from finetune.computation import Computation, as_features, joined
from finetune.config import FeaturesConfig
from finetune.data.images import Images
from finetune.data.loading import (
    Batches,
    Key,
    KeyedBatches,
    PhotoDataset,
    Unreadable,
    collate,
    photo_loader,
    unreadable,
)
from finetune.data.mixing import Mixing
from finetune.data.views import Views
from finetune.errors import OutputError, UnreadableError
from finetune.feature_cache import (
    ORIGIN,
    FeatureStore,
    Layout,
    cache_root,
    disk_limit,
    make_room,
)
from finetune.files import sha256_of, state_of
from finetune.keeping import layout_of
from finetune.progress import Progress
from finetune.runtime import (
    available_cores,
    one_thread_a_core,
    release_memory,
    versions,
)
from finetune.split import Features
from finetune.stopping import unless_asked

FeatureBatch = tuple[Features, Tensor]
"""Input of the live part, and labels on the device: ``(N,)`` int64, or each class's share of a
mixed image, ``(N, num_classes)`` float32."""


class Source(Protocol):
    """The batches of one split.

    Attributes:
        from_earlier: Whether every feature was there already, from an earlier run.
    """

    from_earlier: bool

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch, from batch ``start`` on."""

    def files(self, epoch: int, batch: int) -> list[Path]:
        """The images of one batch, counted from 0."""


class FreshFeatures:
    """Computed anew for each batch; without a prefix, the images themselves."""

    from_earlier = False

    def __init__(
        self, batches: Batches, computation: Computation, mixing: Mixing | None = None
    ) -> None:
        self.batches = batches
        self.computation = computation
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.batches)

    def files(self, epoch: int, batch: int) -> list[Path]:
        """The images of one batch, counted from 0."""
        return self.batches.files(epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch, from batch ``start`` on."""
        device = self.computation.device
        for number, (pixels, labels) in enumerate(self.batches.epoch(epoch, start), start):
            labels = labels.to(device, non_blocking=True)
            if self.mixing is not None:
                pixels = pixels.to(device, non_blocking=True)
                pixels, labels = self.mixing(pixels, labels, epoch=epoch, number=number)
            yield self.computation.features(pixels), labels


class CachedFeatures:
    """Features from a store that is whole.

    Args:
        first_rows: Of each image, where the store holds more images, or more views, than these.
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
        """The images of one batch, counted from 0."""
        return self._batches.files(self.images, epoch, batch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch, from batch ``start`` on."""
        self._batches.epoch, self._batches.start = epoch, start
        for keys in self._batches:
            at, views = torch.tensor(keys).unbind(dim=1)
            rows = self._first_rows[at] + views
            features = tuple(t.to(self.device) for t in self.store.take(rows))
            yield as_features(features), self._labels[at].to(self.device)

    def part(self, positions: Sequence[int], *, batch_size: int, training: bool) -> CachedFeatures:
        """Some of these images from the same store, as if it held no others.

        Args:
            training: As this source: shuffled, in its views; else in order, each in its first view.
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
    computation: Computation,
    images: Images,
    views: Views,
    *,
    workers: int,
    what: str,
    seconds: float | None,
    progress: Progress,
) -> FeatureStore:
    """A whole store: what is missing in it is computed.

    Args:
        seconds: What a row takes, where it was measured.

    Raises:
        OutputError: the disk is full or cannot be written.
        UnreadableError: names every image that cannot be decoded.
    """
    assert views.count is not None
    layout = layout_of(computation, len(images), views.count)
    try:
        store = _open_store(config, cache, computation, images, views, layout)
        if store.damaged:
            progress.warn(f"{store.folder}: damaged features found; they are computed again")
        if store.missing:
            _fill(store, computation, images, views, workers, what, seconds, progress)
    except OSError as error:
        where = config.dir or error.filename or "features.cache"
        raise OutputError(
            f"{where}: features cannot be kept: {error.strerror or error}; "
            "--set features.dir=FOLDER names another place, --set features.cache=off does without"
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
        "views": f"{views.name} {views.count}",
        "seed": str(views.seed) if views.are_random else "",
        "form": f"{computation.form} on {computation.device.type} by {computation.rows}",
        "files": _files_digest(images, config.known_by),
        "versions": json.dumps(versions()),
    }
    key = hashlib.sha256(json.dumps([description, asdict(layout)]).encode()).hexdigest()[:32]
    root = cache_root(config.dir)
    if not (root / key).exists():
        make_room(root, layout.num_bytes, limit=disk_limit(root))
    # For people who read `finetune cache list`; a folder that is moved keeps its features.
    description[ORIGIN] = str(Path(images.paths[0]).parent.parent)
    return FeatureStore(layout, root / key, description)


def _files_digest(images: Images, known_by: str) -> str:
    """Of every file: its path and its state, as `state_of` gives it; or its content."""
    digest = hashlib.sha256()
    for path in images.paths:
        try:
            if known_by == "content":
                digest.update(sha256_of(path).encode())
            else:
                text = f"{path.absolute()}\0{state_of(path.stat())}\n"
                digest.update(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            # As where it is decoded: no trouble of the folder that features are kept in.
            raise UnreadableError([(path, error.strerror or str(error))], passing={path}) from error
    return digest.hexdigest()


def _fill(
    store: FeatureStore,
    computation: Computation,
    images: Images,
    views: Views,
    workers: int,
    what: str,
    seconds: float | None,
    progress: Progress,
) -> None:
    assert views.count is not None
    layout = store.layout
    missing = store.missing
    keys = [_keys_of(layout, block, views.count) for block in missing]
    dataset = PhotoDataset(images, computation.preprocessing, views)
    release_memory()  # where the run needs most, nothing else is kept
    if workers or computation.device.type != "cpu":
        blocks = _computed_here(dataset, keys, computation, workers)
    else:
        blocks = _computed_in_threads(dataset, keys, computation)
    known = ""
    if seconds is not None:
        expected = seconds * len(keys) * layout.block_rows
        known = f", about {expected:,.0f} s" if expected >= 1 else ", under a second"
    progress.say(
        f"{what}: frozen features of {len(images):,} images in {views.count} "
        f"{'view' if views.count == 1 else 'views'} are computed once: "
        f"{layout.num_bytes / 2**20:,.1f} MiB{known}"
    )
    blocks = unless_asked(blocks)
    tracked = progress.track(blocks, f"{what} features", total=len(keys))
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
    computation: Computation,
    workers: int,
) -> Iterator[_Block]:
    """Block by block, in order; worker processes decode ahead."""
    for batch in photo_loader(dataset, keys, min(workers, len(keys)), computation.device):
        yield batch if isinstance(batch, list) else computation(batch[0])


def _computed_in_threads(
    dataset: PhotoDataset, keys: list[list[Key]], computation: Computation
) -> Iterator[_Block]:
    """Block by block, in order; each core decodes and computes a block of its own."""

    def compute(block: list[Key]) -> _Block:
        """By no more images than are computed at once: pixels need memory as well."""
        broken: list[Unreadable] = []
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, len(block), computation.rows):
            batch = collate(dataset.__getitems__(block[start : start + computation.rows]))
            if isinstance(batch, list):
                broken += batch
            elif not broken:
                parts.append(computation.in_this_thread(batch[0]))
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
