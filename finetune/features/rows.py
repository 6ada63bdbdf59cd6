"""Rows of features: photos are decoded, transformed and passed through the frozen prefix.

This is the one place that computes features to be kept, for training, evaluation and prediction
alike. A row's value depends on the photo and the view alone: rows are computed in batches of one
size, the last of which is padded, so that neighbours and their number do not matter
(`finetune.features.self_test` verifies that on each device). Where there are stored rows at an
earlier split point, rows are computed from these (`finetune.features.earlier_cut`).
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.config.schema import FeaturesConfig
from finetune.core.cores import available_cores
from finetune.core.errors import FinetuneError, OutputError
from finetune.core.files import warn_once
from finetune.core.memory import release_memory, spare_gpu_bytes
from finetune.core.reporter import Reporter
from finetune.core.signals import unless_asked
from finetune.core.text import mib
from finetune.core.threads import one_thread_a_core
from finetune.data.images import Images
from finetune.data.loading.dataloader import (
    PhotoDataset,
    Sample,
    Unreadable,
    photo_loader,
    unreadable,
)
from finetune.data.loading.sampler import Key
from finetune.data.loading.views import Views
from finetune.distributed.group import group
from finetune.features.earlier_cut import EarlierRows, earlier_rows
from finetune.features.extractor import BLOCK_ROWS, FeatureExtractor, joined
from finetune.features.opening import (
    lacks_support,
    layout_of,
    make_room_for,
    open_store,
    share_of,
)
from finetune.features.photo_keys import keys_of_rows, numbered
from finetune.features.self_test import rows_are_independent
from finetune.features.store import DiskStore, Keys, MemoryStore, RowStore
from finetune.freezing.graph_split import Features
from finetune.results.features import FeatureCounts

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_WAITING = 2
"""Number of blocks that may wait to be stored."""
_MOST_ROUNDS = 3
"""How often rows that were just written may turn out to be damaged."""


class Decoder(Protocol):
    """Photos that can be decoded, such as a `PhotoDataset`."""

    def __getitems__(self, keys: list[Key]) -> list[Sample | Unreadable]:
        """Decode and transform views of photos; may be called from several threads."""


@dataclass(frozen=True)
class Block:
    """Some rows that were computed together.

    Attributes:
        at: Position of each row of ``features`` in the keys that were asked for.
        broken: Position and error of each row whose photo cannot be decoded.
    """

    at: list[int]
    features: Features
    broken: list[tuple[int, Unreadable]]


def compute_blocks(
    decoder: Decoder,
    blocks: Sequence[list[Key]],
    extractor: FeatureExtractor | None,
    *,
    workers: int = 0,
) -> Iterator[Block]:
    """Decode photos and compute their rows; yield the blocks in order.

    On a CPU each core decodes and computes another block. With worker processes, these decode
    ahead.

    Args:
        decoder: Photos; a `PhotoDataset` where there are workers.
        extractor: None only decodes: the feature is the pixels.
    """
    if extractor is None:
        yield from _in_threads(lambda keys: _decoded(decoder, keys), blocks)
    elif extractor.device.type == "cpu" and not workers:
        yield from _in_threads(lambda keys: _computed(decoder, keys, extractor), blocks)
    elif workers:
        assert isinstance(decoder, PhotoDataset)
        yield from computed_together(_decoded_ahead(decoder, blocks, workers, extractor), extractor)
    else:
        decoded = _in_threads(lambda keys: _decoded(decoder, keys), blocks)
        yield from computed_together(decoded, extractor)


def _decoded_ahead(
    decoder: PhotoDataset, blocks: Sequence[list[Key]], workers: int, extractor: FeatureExtractor
) -> Iterator[Block]:
    loaded = photo_loader(decoder, blocks, min(workers, len(blocks)), extractor.device)
    for keys, batch in zip(blocks, loaded, strict=True):
        if isinstance(batch, list):  # some are broken: the others are decoded again
            yield _decoded(decoder, keys)
        else:
            yield Block(list(range(len(keys))), (batch[0],), [])


def computed_together(decoded: Iterable[Block], extractor: FeatureExtractor) -> Iterator[Block]:
    """Compute the rows of decoded blocks, as many of them at once as a batch takes.

    While a GPU computes the next batch, the rows of the one before are copied from it.
    """
    before: tuple[list[Block], Callable[[], Features]] | None = None
    for blocks in _batches(decoded, max(extractor.batch_rows // BLOCK_ROWS, 1)):
        pixels = [
            block.features[0].to(extractor.device, non_blocking=True)
            for block in blocks
            if block.at
        ]
        rows = copied_back(extractor.rows_of(torch.cat(pixels)) if pixels else ())
        if before is not None:
            yield from _apart(*before)
        before = blocks, rows
    if before is not None:
        yield from _apart(*before)


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def copied_back(features: Features) -> Callable[[], Features]:
    """Start to copy features to the CPU; return what waits for the copies and returns them."""
    if not features or features[0].device.type != "cuda":
        return lambda: tuple(tensor.cpu() for tensor in features)
    copies = tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
            tensor, non_blocking=True
        )
        for tensor in features
    )
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Features:
        copied.synchronize()
        return copies

    return wait


def _apart(blocks: Sequence[Block], rows: Callable[[], Features]) -> Iterator[Block]:
    """Divide rows that were computed together among the blocks that they belong to."""
    features, start = rows(), 0
    for block in blocks:
        end = start + len(block.at)
        own = tuple(tensor[start:end] for tensor in features) if block.at else ()
        yield replace(block, features=own)
        start = end


def _computed(decoder: Decoder, keys: list[Key], extractor: FeatureExtractor) -> Block:
    """Decode and compute a block in the calling thread, few images at a time to save memory."""
    at: list[int] = []
    parts: list[Features] = []
    broken: list[tuple[int, Unreadable]] = []
    size = extractor.batch_rows
    for start in unless_asked(range(0, len(keys), size)):
        decoded = _decoded(decoder, keys[start : start + size])
        at += [start + number for number in decoded.at]
        broken += [(start + number, photo) for number, photo in decoded.broken]
        if decoded.at:
            parts.append(extractor.batch(decoded.features[0]))
    return Block(at, joined(parts) if parts else (), broken)


def _decoded(decoder: Decoder, keys: list[Key]) -> Block:
    """Decode a block; its only feature are the pixels."""
    samples = list(enumerate(decoder.__getitems__(keys)))
    broken = [(number, photo) for number, photo in samples if isinstance(photo, Unreadable)]
    whole = [(number, sample[0]) for number, sample in samples if isinstance(sample, tuple)]
    pixels = (torch.stack([image for _, image in whole]),) if whole else ()
    return Block([number for number, _ in whole], pixels, broken)


def _in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Yield the results of ``work`` in order, a few of them computed ahead."""
    with one_thread_a_core(len(items)) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * available_cores():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_TIMED = 16
"""Number of images whose decoding is timed."""


def decode_seconds(dataset: PhotoDataset, positions: Sequence[int], workers: int) -> float:
    """Return the time per image of reading images, from timing some of them.

    Cores, or worker processes, read different images at the same time.
    """
    some = list(positions[: _TIMED + 1])
    if len(some) > 1:  # reading the first image imports its decoder
        dataset.__getitems__([(some.pop(0), 0)])
    start = time.perf_counter()
    dataset.__getitems__([(at, 0) for at in some])
    return (time.perf_counter() - start) / len(some) / max(available_cores(), workers)


@dataclass(frozen=True)
class Wanted:
    """Features that are wanted.

    Attributes:
        views: A bounded number of views of each image.
        what: Name of the images in messages.
        seconds: Measured time of the frozen prefix per row; None if unknown.
    """

    images: Images
    views: Views
    what: str
    seconds: float | None = None


@dataclass(frozen=True)
class FeatureRows:
    """Features of images in some views, all of them there.

    Attributes:
        tensors: Rows of each feature tensor, in any order, and possibly of other photos too.
        places: Number of the row of each image and view, ``(images, views)`` int64.
    """

    tensors: Features
    places: Tensor
    counts: FeatureCounts

    def take(self, images: Tensor, views: Tensor) -> Features:
        """Return copies of the rows of images in views, by their indices."""
        own = self.places.device
        places = self.places[images.to(own), views.to(own)]
        return tuple(tensor[places] for tensor in self.tensors)

    def part(self, images: Sequence[int]) -> FeatureRows:
        """Return the features of some of the images, by their indices."""
        at = torch.tensor(images, dtype=torch.int64)
        return replace(self, places=self.places[at.to(self.places.device)])

    def on(self, device: torch.device) -> FeatureRows:
        """Return these rows, and no others, on a GPU that has ample memory for them.

        Each step would otherwise copy its rows from the CPU, which takes longer than to train a
        head on them.
        """
        if device.type != "cuda":
            return self
        row_bytes = sum(tensor[0].nbytes for tensor in self.tensors)
        if self.places.numel() * row_bytes > spare_gpu_bytes(device):
            return self
        return self.moved_to(device)

    def moved_to(self, device: torch.device) -> FeatureRows:
        """Return copies of these rows, and no others, on a device."""
        at = self.places.reshape(-1)
        tensors = tuple(tensor[at].to(device) for tensor in self.tensors)
        places = torch.arange(len(at), device=device).view_as(self.places)
        return replace(self, tensors=tensors, places=places)


def feature_rows(
    extractor: FeatureExtractor,
    config: FeaturesConfig,
    wanted: Wanted,
    *,
    workers: int,
    reporter: Reporter,
) -> FeatureRows:
    """Return features from the store; those that it lacks are computed and added to it.

    Args:
        config: Config in which ``cache`` is disk or memory.

    Raises:
        OutputError: The disk is full or not writable.
        UnreadableError: Images cannot be decoded; the message names all of them.
    """
    views = wanted.views.count
    assert views is not None
    start = time.perf_counter()
    count = len(wanted.images) * views
    store: RowStore
    try:
        if config.cache == "disk":
            try:
                independent = group().first(lambda: rows_are_independent(extractor))
                with group().first_before_others():  # which creates the store
                    store, keys, photos, using = _on_disk(
                        extractor, config, wanted, reporter, independent=independent
                    )
                share = share_of(store.folder, group())
                filling = _Filling(store, keys, photos, using, wanted, reporter, share)
                computed = filling.run(workers)
            except OSError as error:
                if not lacks_support(error) or group().are_several:
                    raise
                warn_once(
                    f"{config.dir or 'features.cache disk'}: its file system has no locks or "
                    f"cannot map files ({error.strerror}): features are kept in memory"
                )
                config = config.model_copy(update={"cache": "memory"})
        if config.cache == "memory":
            store = MemoryStore(layout_of(extractor), count)
            keys, photos = numbered(count), np.zeros(len(wanted.images), np.uint64)
            share = group().ranks.rank, group().ranks.size
            filling = _Filling(store, keys, photos, extractor, wanted, reporter, share)
            computed = filling.run(workers)
    except OSError as error:
        where = config.dir or error.filename or "features.cache"
        raise OutputError(
            f"features cannot be cached: {error.strerror or error}",
            kind="output.cache_unwritable",
            path=where,
            to_do="choose another folder with --set features.dir=FOLDER, or disable the cache "
            "with --set features.cache=off",
        ) from error
    places = torch.from_numpy(store.find(keys)).reshape(-1, views)
    seconds = time.perf_counter() - start
    counts = FeatureCounts(computed, max(count - computed, 0), seconds)
    return FeatureRows(store.tensors(), places, counts)


def _on_disk(
    extractor: FeatureExtractor,
    config: FeaturesConfig,
    wanted: Wanted,
    reporter: Reporter,
    *,
    independent: bool,
) -> tuple[DiskStore, Keys, NDArray[np.uint64], FeatureExtractor]:
    """Return the store, the keys of the rows, the photos' numbers, and the extractor to use.

    Args:
        independent: Whether a row does not depend on the rows that it is computed with.
    """
    keys, photos = keys_of_rows(wanted.images, wanted.views, config.known_by)
    if independent:
        return open_store(extractor, config, reporter), keys, photos, extractor
    warn_once(
        f"{extractor.form} on {extractor.device.type}: features depend on the photos that they are "
        "computed with; they are kept for the same list of photos alone"
    )
    only_of = hashlib.sha256(keys.tobytes()).hexdigest()
    store = open_store(extractor, config, reporter, only_of=only_of)
    return store, numbered(len(keys)), photos, replace(extractor, pads=False)


@dataclass(frozen=True)
class _Filling:
    """Computation of the rows that a store lacks.

    Several processes compute every n-th block each: of a store on disk, all that have it in common;
    of stores in memory, all of them, which then exchange their blocks.

    Attributes:
        share: Number of this process among those that divide the work, and their number.
    """

    store: RowStore
    keys: Keys
    photos: NDArray[np.uint64]
    extractor: FeatureExtractor
    wanted: Wanted
    reporter: Reporter
    share: tuple[int, int] = (0, 1)

    def run(self, workers: int) -> int:
        """Compute what is missing, and return the number of rows computed by all processes."""
        return int(group().add_up(torch.tensor(self._fill(workers))))

    def _fill(self, workers: int) -> int:
        computed = 0
        for _ in range(_MOST_ROUNDS):
            places = self.store.find(self.keys)
            missing = (places < 0).nonzero()[0]
            if self.store.damaged and not computed:
                folder = getattr(self.store, "folder", "")
                self.reporter.warn(f"{folder}: damaged features found; they are computed again")
            if not any(group().gather(len(missing))):  # and nobody adds rows before all have looked
                if not self.share[0]:
                    self.store.save_index()
                group().barrier()
                return computed
            missing = _first_of_each(self.keys, missing)
            if isinstance(self.store, DiskStore):
                # Not in the first round only: rows of this store may be dropped to make room.
                if not self.share[0]:  # rows that others may read are not dropped
                    used = None if group().are_several else places
                    make_room_for(self.store, len(missing), used)
                group().barrier()  # before anybody looks at the other stores
                if self.extractor.pads:
                    continued, by_this_process = self._from_earlier_cuts(self.store, missing)
                    computed += by_this_process
                    missing = np.setdiff1d(missing, continued)
            if len(missing) or group().are_several:
                computed += self._round(missing, workers)
            group().barrier()
        raise OSError(errno.EIO, "what was written was damaged when it was read")

    def _from_earlier_cuts(
        self, store: DiskStore, missing: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Compute rows from stored rows at earlier cuts.

        Returns:
            These rows, and the number of those that this process has computed.
        """
        done = [np.empty(0, np.int64)]
        by_this_process = 0
        for known in earlier_rows(self.extractor, store.folder.parent, self.keys[missing]):
            if known.damaged:
                self.reporter.warn(f"{known.folder}: damaged features found; they are not used")
            rows = missing[known.at]
            if len(rows):
                by_this_process += self._continue_from(known, rows)
                done.append(rows)
        return np.concatenate(done), by_this_process

    def _continue_from(self, known: EarlierRows, rows: NDArray[np.int64]) -> int:
        """Compute this process's share of the rows, and return their number."""
        self.reporter.say(
            f"{self.wanted.what} features: computing {len(rows):,} of {len(self.keys):,} from "
            f"stored ones of an earlier split point ({known.cut.first.cut}), without reading images"
        )
        number, of = self.share
        starts = range(0, len(rows), BLOCK_ROWS)[number::of]
        blocks = [slice(at, at + BLOCK_ROWS) for at in starts]
        if self.extractor.device.type == "cpu":
            computing = _in_threads(known.compute, blocks)
        else:
            computing = map(known.compute, blocks)
        what = f"{self.wanted.what} features"
        tracked = self.reporter.track(unless_asked(computing), what, total=len(blocks))
        for block, features in zip(blocks, tracked, strict=True):
            self._append(rows[block], features)
        return sum(len(rows[block]) for block in blocks)

    def _append(self, rows: NDArray[np.int64], features: Features) -> None:
        if any(
            tensor.dtype == torch.float16 and not tensor.isfinite().all() for tensor in features
        ):
            raise FinetuneError(
                "features exceed the range of float16",
                kind="features.overflow",
                key="runtime.precision",
                to_do="set runtime.precision: float32",
            )
        photos = self.photos[rows // (self.wanted.views.count or 1)]
        self.store.append(self.keys[rows], photos, [tensor.cpu() for tensor in features])

    def _round(self, missing: NDArray[np.int64], workers: int) -> int:
        views = self.wanted.views.count or 1
        size = max(BLOCK_ROWS // views, 1) * views
        if self.extractor.pads:
            blocks = [missing[at : at + size] for at in range(0, len(missing), size)]
        else:  # whole blocks of the list, as their rows depend on each other
            numbers = np.unique(missing // size)
            end = len(self.keys)
            blocks = [np.arange(n * size, min((n + 1) * size, end)) for n in numbers.tolist()]
        number, of = self.share
        all_blocks, blocks = blocks, blocks[number::of]
        dataset = PhotoDataset(self.wanted.images, self.extractor.preprocessing, self.wanted.views)
        self._announce(missing, dataset, workers)
        release_memory()  # filling the store is the peak of a run's memory use
        asked = [[divmod(row, views) for row in block.tolist()] for block in blocks]
        computing = unless_asked(
            compute_blocks(dataset, asked, self.extractor, workers=workers) if asked else []
        )
        what = f"{self.wanted.what} features"
        broken: list[Unreadable] = []
        tracked = self.reporter.track(computing, what, total=len(blocks))
        with _in_background(self._append) as append:
            for rows_of_block, block in zip(blocks, tracked, strict=True):
                broken += [photo for _, photo in block.broken]
                if block.at and (self.extractor.pads or not block.broken):
                    append(rows_of_block[block.at], block.features)
        broken = [
            Unreadable(Path(path), reason, lasting)
            for of_process in group().gather(
                [[str(photo.path), photo.reason, photo.lasting] for photo in broken]
            )
            for path, reason, lasting in of_process
        ]
        if broken:
            raise unreadable(broken)
        if group().are_several and isinstance(self.store, MemoryStore):
            self._exchange(self.store, all_blocks)
        return sum(map(len, blocks))

    def _exchange(self, store: MemoryStore, blocks: Sequence[NDArray[np.int64]]) -> None:
        """Copy the blocks that each process has computed into the stores of all others."""
        number, of = self.share
        for at, block in enumerate(blocks):
            owner = at % of
            features = tuple(tensor[torch.from_numpy(block)] for tensor in store.tensors())
            group().rows_of_all(features, owner)
            if owner != number:
                self._append(block, features)

    def _announce(self, rows: NDArray[np.int64], dataset: PhotoDataset, workers: int) -> None:
        missing, views = len(rows), self.wanted.views.count or 1
        num_bytes = missing * layout_of(self.extractor).num_bytes
        known = ""
        if self.wanted.seconds is not None and missing:
            photos = np.unique(rows // views)
            decode_s = decode_seconds(dataset, photos.tolist(), workers)
            all_s = missing * self.wanted.seconds + len(photos) * decode_s
            expected = all_s / self.share[1]
            known = f", about {expected:,.0f} s" if expected >= 1 else ", under a second"
        each = "" if views == 1 else f", {views} of each image"
        self.reporter.say(
            f"{self.wanted.what} features: computing {missing:,} of {len(self.keys):,}{each}, "
            f"{mib(num_bytes)}{known}"
        )


_Arguments = ParamSpec("_Arguments")


@contextmanager
def _in_background(
    work: Callable[_Arguments, object],
) -> Iterator[Callable[_Arguments, None]]:
    """Run some work in a thread of its own, in the order of its calls, a few of which may wait.

    Yields:
        Function that calls ``work`` later. It raises the error of an earlier call, as the end of
        the block does; nothing is done after an error.
    """
    waiting: deque[Future[object]] = deque()
    has_failed = False

    def unless_failed(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        nonlocal has_failed
        if has_failed:
            return
        try:
            work(*arguments, **named)
        except BaseException:
            has_failed = True
            raise

    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        if len(waiting) >= _MOST_WAITING:
            waiting.popleft().result()
        waiting.append(pool.submit(unless_failed, *arguments, **named))

    with ThreadPoolExecutor(1) as pool:
        yield call
        for future in waiting:
            future.result()


def _first_of_each(keys: Keys, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows without those whose key an earlier one has, in ascending order."""
    own = keys[rows]
    order = np.lexsort((own[:, 1], own[:, 0]))
    first = np.ones(len(rows), np.bool_)
    first[1:] = (own[order][1:] != own[order][:-1]).any(axis=1)
    return np.sort(rows[order[first]])
