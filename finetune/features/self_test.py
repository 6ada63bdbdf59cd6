"""Self-test: is a row of features the same bits if it is computed in another way?

Kernels may add up in another order at another place in a batch. On the processors that were tried
they do not, as long as the size of the batch stays the same; where they do, rows of single photos
cannot be exchanged, and whole lists of photos are kept instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from finetune.core.errors import OutputError
from finetune.core.files import write_text
from finetune.features.compute_format import machine_file
from finetune.features.extractor import FeatureExtractor
from finetune.freezing.graph_split import Features


def rows_are_independent(extractor: FeatureExtractor) -> bool:
    """Return whether rows are bit for bit the same in another place and with other neighbours."""
    return gives_same_rows(extractor.rows_of, extractor, "rows")


def gives_same_rows(
    compute: Callable[[Tensor], Features], extractor: FeatureExtractor, what: str
) -> bool:
    """Return whether a function computes an extractor's rows of uint8 pixels, bit for bit.

    The rows of two batches of random pixels are compared, which are in another place and have
    other neighbours in the second, given to the function. The answer is remembered for this
    machine, the versions, the network and the compute format.

    Args:
        what: Name of the function in the key of the answer.
    """
    path: Path | None
    try:
        path = machine_file(
            what, extractor.identity, extractor.preprocessing.crop, extractor.row_format
        )
    except OSError:  # no home folder
        path = None
    with suppress(OSError, ValueError):
        if path is not None:
            answer = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(answer, bool):
                return answer
    same = _compare(compute, extractor)
    with suppress(OSError, OutputError):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(same))
    return same


def _compare(compute: Callable[[Tensor], Features], extractor: FeatureExtractor) -> bool:
    count, crop = extractor.batch_rows, extractor.preprocessing.crop
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, crop, crop), generator=generator, dtype=torch.uint8)
    others = pixels.flip(0)
    others[::2] = 0  # every second one is replaced, the rest are at the other end
    first, second = extractor.rows_of(pixels), compute(others)
    return all(
        torch.equal(one.flip(0)[1::2], other[1::2])
        for one, other in zip(first, second, strict=True)
    )
