"""Reads the features of a stream of photos: from the store where it has them, else computed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch

from finetune.config.schema import FeaturesConfig
from finetune.core.cores import available_cores
from finetune.core.errors import OutputError
from finetune.core.files import warn_once
from finetune.core.locks import lock_across_forks
from finetune.core.reporter import SilentReporter
from finetune.data.loading.views import KINDS
from finetune.features.extractor import BLOCK_ROWS, FeatureExtractor, joined
from finetune.features.opening import make_room_for, open_store, store_folder
from finetune.features.photo_keys import as_keys, photo_id, photo_numbers, row_key
from finetune.features.rows import Block, Decoder, compute_blocks
from finetune.features.self_test import rows_are_independent
from finetune.features.store import DiskStore, Keys
from finetune.results.features import FeatureCounts

_BLOCKS_A_CORE = 4
_WAITING_BYTES = 2**28
"""Maximum bytes of features or pixels that are computed ahead."""
_access = lock_across_forks()
"""Held while a store is read or written."""


class Photos(Decoder, Protocol):
    """Photos that are read in their order, as they are or mirrored."""

    def __len__(self) -> int: ...

    def path(self, position: int) -> str | None:
        """Return the path of a photo's file; None if it is not in a file."""


class RowReader:
    """Features of photos, computed a few blocks ahead.

    May be used by several threads at once, and after a fork.

    Args:
        config: Resolved config; the store is used if ``cache`` is disk.
        keeps: Whether computed rows are added to the store. If not, a store that does not exist
            yet is not created.

    Attributes:
        gives_pixels: Whether the features are uint8 pixels, because there is no frozen prefix or it
            runs on the batches of the trainable part.
    """

    def __init__(self, extractor: FeatureExtractor, config: FeaturesConfig, *, keeps: bool) -> None:
        has_prefix = extractor.prefix is not None
        self._is_kept = has_prefix and config.cache != "off"
        self.gives_pixels = not has_prefix or (not self._is_kept and extractor.device.type != "cpu")
        self._extractor = extractor
        self._config = config
        self._keeps = keeps
        self._store: DiskStore | None = None
        self._process = 0
        self._computed = self._reused = 0
        self._seconds = 0.0

    @property
    def counts(self) -> FeatureCounts | None:
        """Rows computed and reused so far; None if no features are kept."""
        if not self._is_kept:
            return None
        return FeatureCounts(self._computed, self._reused, self._seconds)

    def read(self, photos: Photos, batch_size: int, *, view: int = 0) -> Iterator[Block]:
        """Yield the features of all photos in their order.

        Args:
            batch_size: Number of photos that are computed together if no features are kept.
            view: 0 for the photo as it is, 1 for its mirror image.
        """
        # The last bits of a value may depend on its batch, so that blocks have the size that
        # `eval` uses.
        block_rows = BLOCK_ROWS if self._is_kept else batch_size
        # One photo alone is not worth a batch, unless its features are kept.
        pads = self._is_kept and (len(photos) > 1 or self._keeps)
        extractor = replace(self._extractor, pads=pads)
        cores = available_cores()
        room = _WAITING_BYTES // max(block_rows * self._row_bytes, 1)
        window = block_rows * min(max(room, cores), _BLOCKS_A_CORE * cores)
        for start in range(0, len(photos), window):
            began = time.perf_counter()
            span = range(start, min(start + window, len(photos)))
            block = self._window(photos, span, extractor, block_rows, view)
            self._seconds += time.perf_counter() - began  # before the caller's time
            yield block

    @property
    def _row_bytes(self) -> int:
        """Bytes of one photo that wait for the trainable part."""
        if self.gives_pixels:
            return self._extractor.pixel_bytes
        return self._extractor.image_bytes

    def _window(
        self,
        photos: Photos,
        span: range,
        extractor: FeatureExtractor,
        block_rows: int,
        view: int,
    ) -> Block:
        """Return the features of photos at neighbouring positions."""
        ids = self._ids(photos, span) if self._config.cache == "disk" else {}
        known = self._known(ids, extractor, view)
        at_hand = frozenset(known.at)
        lacking = [position for position in span if position not in at_hand]
        blocks = [lacking[at : at + block_rows] for at in range(0, len(lacking), block_rows)]
        parts = [known] if known.at else []
        broken = []
        asked = [[(position, view) for position in block] for block in blocks]
        working = None if self.gives_pixels else extractor
        # All at once, so that no thread waits while the caller has the features.
        for block, result in zip(blocks, list(compute_blocks(photos, asked, working)), strict=True):
            broken += [(block[number], photo) for number, photo in result.broken]
            if result.at:
                at = [block[number] for number in result.at]
                parts.append(Block(at, tuple(tensor.cpu() for tensor in result.features), []))
        if self._keeps and self._store is not None:
            self._keep(parts[len(known.at) > 0 :], ids, view)
        self._computed += len(lacking) - len(broken)
        self._reused += len(known.at)
        return replace(_in_order(parts), broken=broken)

    def _ids(self, photos: Photos, span: range) -> dict[int, bytes]:
        """Return what identifies the photos that are files, by position."""
        ids = {}
        for position in span:
            path = photos.path(position)
            if path is not None:
                with suppress(OSError, ValueError):  # said when it is decoded
                    ids[position] = photo_id(path, self._config.known_by)
        return ids

    def _known(self, ids: dict[int, bytes], extractor: FeatureExtractor, view: int) -> Block:
        """Return the features that the store has."""
        with _access:
            store = self._opened(extractor) if ids else None
            if store is None:
                return Block([], (), [])
            places = store.find(_keys_of(ids.values(), view))
            there = places >= 0
            at = [position for position, is_there in zip(ids, there, strict=True) if is_there]
            rows = torch.from_numpy(places[there])
            return Block(at, tuple(tensor[rows] for tensor in store.tensors()), [])

    def _keep(self, parts: list[Block], ids: dict[int, bytes], view: int) -> None:
        """Add computed rows of image files to the store; without success, it is said once."""
        with _access:
            assert self._store is not None
            try:
                make_room_for(self._store, sum(len(part.at) for part in parts))
                for part in parts:
                    chosen = [n for n, position in enumerate(part.at) if position in ids]
                    own = [ids[part.at[number]] for number in chosen]
                    if own:
                        features = [tensor[chosen] for tensor in part.features]
                        self._store.append(_keys_of(own, view), photo_numbers(own), features)
            except (OSError, OutputError) as error:
                self._give_up(error)

    def _opened(self, extractor: FeatureExtractor) -> DiskStore | None:
        """Return the store; None if there is none, or if it cannot be used."""
        if self._config.cache != "disk":
            return None
        if self._process != os.getpid():  # a fork shares the positions in open files
            self._process, self._store = os.getpid(), None
            try:
                wanted = self._keeps or store_folder(extractor, self._config).is_dir()
                if wanted and rows_are_independent(replace(extractor, pads=True)):
                    self._store = open_store(extractor, self._config, SilentReporter())
            except (OSError, OutputError) as error:
                self._give_up(error)
        return self._store

    def _give_up(self, error: OSError | OutputError) -> None:
        self._store = None
        if self._keeps:
            reason = getattr(error, "strerror", None) or error
            warn_once(f"features are neither read from the feature cache nor added to it: {reason}")


def _keys_of(ids: Iterable[bytes], view: int) -> Keys:
    return as_keys(b"".join(row_key(photo, KINDS[view]) for photo in ids))


def _in_order(parts: list[Block]) -> Block:
    """Join blocks, with their rows in ascending order of the positions."""
    if not parts:
        return Block([], (), [])
    at = [position for part in parts for position in part.at]
    features = joined([part.features for part in parts])
    if at != sorted(at):
        order = sorted(range(len(at)), key=at.__getitem__)
        at = [at[number] for number in order]
        features = tuple(tensor[order] for tensor in features)
    return Block(at, features, [])
