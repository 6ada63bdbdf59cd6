"""Measure the feature store with many small synthetic rows: filling, opening, finding, reading.

    python benchmarks/feature_store.py [--rows 1000000] [--width 16] [--json store.json]

Each step runs in a process of its own. Memory is what the process holds itself: pages of mapped
files, which the system can reclaim, do not count. Times of reading are also given for one
contiguous tensor in memory, the fastest that is possible.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.features.photo_keys import as_keys
from finetune.features.store import DiskStore, Keys, RowLayout

BLOCK_ROWS = 32
BATCH_SIZE = 32
BATCHES = 3_000
SOME = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=16, help="float32 numbers in a row")
    parser.add_argument("--folder", type=Path, help="folder for the store; default: temp")
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    found: dict[str, Any] = {"rows": options.rows, "width": options.width}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for step in (fill, open_and_find, read):
            found |= _alone(step, Path(name), options.rows, options.width)
    for key, value in found.items():
        print(f"{key:40} {value:,.4g}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def fill(folder: Path, rows: int, width: int) -> dict[str, float]:
    """Append all rows in blocks, as a run does; time and memory of each quarter."""
    store, keys = _store(folder, width), _keys(rows)
    store.find(keys[:SOME])
    before, quarter = _own_memory(), -(-rows // 4)
    found: dict[str, float] = {}
    for number, start in enumerate(range(0, rows, quarter), 1):
        began = time.perf_counter()
        stop = min(start + quarter, rows)
        for at in range(start, stop, BLOCK_ROWS):
            end = min(at + BLOCK_ROWS, stop)
            values = torch.arange(at, end, dtype=torch.float32)[:, None].expand(-1, width)
            store.append(keys[at:end], keys[at:end, 0], [values])
        found[f"fill quarter {number}: us a row"] = (
            (time.perf_counter() - began) / (stop - start) * 1e6
        )
        found[f"fill quarter {number}: MiB more"] = (_own_memory() - before) / 2**20
    began = time.perf_counter()
    store.save_index()
    found["index: s"] = time.perf_counter() - began
    return found


def open_and_find(folder: Path, rows: int, width: int) -> dict[str, float]:
    """Open the store, then find some and all rows; the first time their checksums are verified."""
    keys = _keys(rows)
    _store(folder.with_name(f"{folder.name}-none"), width).find(keys[:1])  # imports and first use
    before = _own_memory()
    began = time.perf_counter()
    store = _store(folder, width)
    found = {"open: s": time.perf_counter() - began}
    for what, count in (("some", SOME), ("all", rows)):
        began = time.perf_counter()
        places = store.find(keys[:count])
        found[f"find {what}, verifying: s"] = time.perf_counter() - began
        assert (places == np.arange(count)).all()
    found["open and find all: bytes a row"] = (_own_memory() - before) / rows
    began = time.perf_counter()
    store.find(keys)
    found["find all again: s"] = time.perf_counter() - began
    return found


def read(folder: Path, rows: int, width: int) -> dict[str, float]:
    """Read random batches."""
    store = _store(folder, width)
    places = torch.from_numpy(store.find(_keys(rows)))
    mapped = store.tensors()[0]
    contiguous = mapped.clone()
    chosen = torch.randint(rows, (BATCHES, BATCH_SIZE), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    for batch in chosen:
        mapped[places[batch]]
    between = time.perf_counter()
    for batch in chosen:
        contiguous[batch]
    ended = time.perf_counter()
    return {
        f"batch of {BATCH_SIZE} from the store: us": (between - began) / BATCHES * 1e6,
        f"batch of {BATCH_SIZE} from memory: us": (ended - between) / BATCHES * 1e6,
    }


def _store(folder: Path, width: int) -> DiskStore:
    return DiskStore(folder, RowLayout(((width,),), "float32"), {"network": "synthetic"})


def _keys(rows: int) -> Keys:
    # Hashes of the numbers: random, as those of photos are.
    return as_keys(hashlib.shake_128(b"keys").digest(16 * rows))


def _own_memory() -> int:
    """Return the bytes that this process holds and that are no pages of a file."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not report the memory of a process")


def _alone(
    step: Callable[[Path, int, int], dict[str, float]], folder: Path, rows: int, width: int
) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, (folder / "store", rows, width))


if __name__ == "__main__":
    main()
