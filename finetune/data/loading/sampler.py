"""Batch sampler: which images and views make up each batch of an epoch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Sampler

from finetune.core.seeding import seed_for
from finetune.data.images import Images
from finetune.data.loading.views import Views
from finetune.distributed.ranks import ALONE, Ranks

Key = tuple[int, int]
"""Index of an image and number of its view."""

_EPOCHS_APART = 2**20


def by_image(keys: list[Key]) -> Iterator[tuple[int, list[int]]]:
    """Yield the index and the views of each run of adjacent keys of one image."""
    for index, group in itertools.groupby(keys, key=lambda key: key[0]):
        yield index, [view for _, view in group]


class KeyedBatches(Sampler[list[Key]]):
    """Batch sampler of image and view keys; order and views are functions of seed and epoch.

    Several processes share each batch of a shuffled epoch, which is one step of training, row by
    row; otherwise each takes whole batches, since the last bits of a result may depend on the
    batch that it is computed in.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        views: Views,
        shuffle: bool,
        balanced: Sequence[int] | None = None,
        ranks: Ranks = ALONE,
        previous_row: bool = False,
    ) -> None:
        """Create the sampler.

        Args:
            balanced: Labels of the images, if an epoch should draw every class equally often.
            ranks: Place of this process among those that share the batches.
            previous_row: Whether a share also begins with the row before it, or with the last one
                of the batch: mixup and cutmix mix each row with its predecessor.
        """
        self.count = count
        self.balanced = None if balanced is None else torch.tensor(balanced)
        self.batch_size = batch_size
        self.views = views
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0
        """Number of batches of the epoch to skip."""
        self.ranks = ranks
        self.previous_row = previous_row and ranks.are_several

    def __iter__(self) -> Iterator[list[Key]]:
        batches = itertools.islice(self._all(), self.start, None)
        if not self.ranks.are_several:
            return batches
        if self.shuffle:
            return map(self._share, batches)
        return itertools.islice(batches, self.ranks.rank, None, self.ranks.size)

    def _share(self, batch: list[Key]) -> list[Key]:
        rows = self.ranks.rows(len(batch))
        own = [batch[row] for row in rows]
        return [batch[rows.start - 1], *own] if self.previous_row and own else own

    @property
    def sizes(self) -> list[int]:
        """Number of images in each whole batch of an epoch."""
        return batch_sizes(self.count, self.batch_size, join_last_of_one=self.shuffle)

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
        for size in self.sizes:
            chosen = order[start : start + size]
            yield [(index, self._view(index, drawn)) for index in chosen]
            start += size

    def __len__(self) -> int:
        """Return the number of whole batches, those of other processes included."""
        return len(self.sizes)

    def files(self, images: Images, epoch: int, batch: int) -> list[Path]:
        """Return the paths of the images of one batch (0-based)."""
        self.epoch = epoch
        whole = next(itertools.islice(self._all(), batch, None))
        return [images.paths[index] for index, _ in whole]

    def _view(self, index: int, drawn: Counter[int]) -> int:
        """Return the view of an image; a repeat within an epoch counts as another epoch."""
        again = drawn[index]
        if self.balanced is not None:
            drawn[index] += 1
        return self.views.pick(self.epoch + again * _EPOCHS_APART, index)


def _balanced_draw(labels: Tensor, generator: torch.Generator) -> list[int]:
    """Draw as many positions as labels, with replacement: first a class, then an image of it."""
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
    """Return the number of images in each batch.

    Args:
        join_last_of_one: Whether to merge a last batch of one image into the one before. A norm
            layer cannot train on a single value, and no image is dropped.
    """
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest else [])
    if join_last_of_one and rest == 1 and whole:
        sizes[-2:] = [batch_size + 1]
    return sizes
