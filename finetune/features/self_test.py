"""Self-test: does a row of features depend on the other rows of its batch?

Kernels may add up in another order at another place in a batch. On the processors that were tried
they do not, as long as the size of the batch stays the same; where they do, rows of single photos
cannot be exchanged, and whole lists of photos are kept instead.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch

from finetune.core.errors import OutputError
from finetune.core.files import write_text
from finetune.features.compute_format import machine_file
from finetune.features.extractor import FeatureExtractor


def rows_are_independent(extractor: FeatureExtractor) -> bool:
    """Return whether rows are bit for bit the same in another place and with other neighbours.

    Two batches of random pixels are computed; the answer is remembered for this machine, the
    versions, the network and the compute format.
    """
    path: Path | None
    try:
        path = machine_file(
            "rows", extractor.identity, extractor.preprocessing.crop, extractor.row_format
        )
    except OSError:  # no home folder
        path = None
    with suppress(OSError, ValueError):
        if path is not None:
            answer = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(answer, bool):
                return answer
    independent = _compare(extractor)
    with suppress(OSError, OutputError):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(independent))
    return independent


def _compare(extractor: FeatureExtractor) -> bool:
    count, crop = extractor.batch_rows, extractor.preprocessing.crop
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, crop, crop), generator=generator, dtype=torch.uint8)
    others = pixels.flip(0)
    others[::2] = 0  # every second one is replaced, the rest are at the other end
    first, second = extractor.rows_of(pixels), extractor.rows_of(others)
    return all(
        torch.equal(one.flip(0)[1::2], other[1::2])
        for one, other in zip(first, second, strict=True)
    )
