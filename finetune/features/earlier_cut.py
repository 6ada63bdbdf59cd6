"""Earlier cut: rows of features that are computed from stored rows of a shorter frozen prefix.

A network that was trained with more of it thawed has left rows in a store of its own, such as the
maps before its last block. If the head alone is trained next, its frozen prefix begins with the
same layers, and the rows of the same photos and views are valid inputs for the rest of it: no photo
is decoded, and the early layers are not computed.

A store is recognised by its description. It names the nodes of the network's graph whose values it
holds; the prefix is divided there, and the first part must give the store's folder name, a hash of
the frozen weights, the graph, the preprocessing, the compute format, the device, the size of
batches and the versions. Its rows are used where that is expected to be faster than decoding photos
and computing the first part, by the rule that decides whether its features are worth caching
(`finetune.features.cache_policy.worth_keeping`), and only if a self-test finds that the rows come
out bit for bit the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.core.signals import unless_asked
from finetune.core.threads import on_cores
from finetune.features.cache_folder import StoredFeatures, stored
from finetune.features.cache_policy import worth_keeping
from finetune.features.extractor import FeatureExtractor, frozen_identity, joined, padded
from finetune.features.opening import description_of, folder_name, layout_of
from finetune.features.self_test import gives_same_rows
from finetune.features.store import DiskStore, Keys, Places
from finetune.freezing.flops import forward_multiply_adds
from finetune.freezing.graph_split import Features, divide_prefix


@dataclass(frozen=True)
class EarlierCut:
    """Split point before that of an extractor.

    Attributes:
        whole: Extractor of the features that are wanted.
        first: Extractor of the features at this split point.
        rest: Module from these features to those of the whole prefix.
        end: Index in the network's graph of the node after which the first part ends.
    """

    whole: FeatureExtractor
    first: FeatureExtractor
    rest: nn.Module
    end: int

    def gives_same_rows(self) -> bool:
        """Return whether the two parts compute the rows of the whole prefix, bit for bit."""
        return gives_same_rows(self._rows_of, self.whole, f"rows from {self.first.identity}")

    def _rows_of(self, pixels: Tensor) -> Features:
        """Compute rows for uint8 pixels, which are between the parts as they are in a store."""
        kept = tuple(tensor.cpu().contiguous() for tensor in self.first.rows_of(pixels))
        places = torch.split(torch.arange(len(pixels)), self.first.batch_rows)
        work = functools.partial(self.continued, kept)
        on_cpu = self.first.device.type == "cpu"
        return joined(on_cores(work, list(places)) if on_cpu else list(map(work, places)))

    def continued(self, rows: Features, places: Tensor) -> Features:
        """Compute rows of the whole prefix in the calling thread, in batches of one size.

        Args:
            rows: Rows at this split point.
            places: Numbers of the rows to continue from.
        """
        parts = unless_asked(torch.split(places, self.first.batch_rows))
        return joined([self._batch([tensor[part] for tensor in rows]) for part in parts])

    def _batch(self, rows: list[Tensor]) -> Features:
        inputs = [self._arranged(padded(tensor, self.first.batch_rows)) for tensor in rows]
        count = len(rows[0])
        return tuple(tensor[:count] for tensor in self.rest(*inputs))

    def _arranged(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.first.device)
        if tensor.dim() != 4:
            return tensor
        return tensor.contiguous(memory_format=self.first.form.layout)


@dataclass(frozen=True)
class EarlierRows:
    """Stored rows at an earlier split point, from which wanted rows can be computed.

    Attributes:
        folder: Folder of the store.
        cut: Split point.
        tensors: All rows of the store.
        at: Positions in the keys that were asked for.
        places: For each of these positions, the number of its row in the store.
        damaged: Number of damaged blocks that were met.
    """

    folder: Path
    cut: EarlierCut
    tensors: Features
    at: NDArray[np.int64]
    places: Places
    damaged: int

    def compute(self, some: slice) -> Features:
        """Compute the wanted rows of some of the positions, in the calling thread."""
        return self.cut.continued(self.tensors, torch.from_numpy(self.places[some]))


def earlier_rows(extractor: FeatureExtractor, root: Path, keys: Keys) -> Iterator[EarlierRows]:
    """Yield stored rows that an extractor's rows can be computed from, those of the latest cut
    first.

    Each key is in one of them at most.

    Args:
        extractor: Extractor of rows that do not depend on their neighbours.
        root: Folder of all stores.
    """
    wanted = np.arange(len(keys))
    for folder, cut in _earlier_cuts(extractor, root):
        try:
            # Not in use by this process: it may be removed if other features need its space.
            store = DiskStore(folder, layout_of(cut.first), description_of(cut.first))
            places = store.find(keys[wanted])
        except OSError:  # the photos are there
            continue
        there = places >= 0
        if (there.any() or store.damaged) and cut.gives_same_rows():
            yield EarlierRows(
                folder, cut, store.tensors(), wanted[there], places[there], store.damaged
            )
            wanted = wanted[~there]


def _earlier_cuts(extractor: FeatureExtractor, root: Path) -> list[tuple[Path, EarlierCut]]:
    """Return the stores whose rows an extractor's can be computed from, the latest cut first."""
    found = []
    for store in stored(root):
        cut = _cut_of(store, extractor)
        if cut is not None and _is_faster(cut.first):
            found.append((store.folder, cut))
    return sorted(found, key=lambda pair: pair[1].end, reverse=True)


def _cut_of(store: StoredFeatures, extractor: FeatureExtractor) -> EarlierCut | None:
    """Return the split point of a store; None if it has not the same computation up to there."""
    origin, layout = extractor.origin, store.layout
    model = origin.model() if origin else None
    differing = {"identity", "cut"}
    own = {k: v for k, v in description_of(extractor).items() if k not in differing}
    others = {k: v for k, v in store.description.items() if k not in differing}
    if origin is None or model is None or layout is None or own != others:
        return None
    parts = divide_prefix(model, origin.point, layout.names)
    if parts is None:
        return None
    first = replace(
        extractor,
        prefix=extractor.form.arrange(parts.first, cast=True),
        crossing=layout.shapes,
        identity=frozen_identity(parts.first, parts.reads, origin.frozen),
        cut=store.description.get("cut", ""),
        names=layout.names,
        origin=None,
    )
    if folder_name(first) != store.folder.name:
        return None
    rest = extractor.form.arrange(parts.rest, cast=True)
    return EarlierCut(extractor, first, rest, parts.end)


def _is_faster(first: FeatureExtractor) -> bool:
    """Return whether reading a row is faster than decoding the photo and computing the row."""
    if worth_keeping(first, 0):
        return True
    crop = first.preprocessing.crop
    assert first.prefix is not None
    return worth_keeping(first, forward_multiply_adds(first.prefix, crop, first.form.dtype))
