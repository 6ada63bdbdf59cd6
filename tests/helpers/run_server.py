"""Server of forked command-line runs of a small network, which records where each was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.cache import new_cache
from helpers.fork_server import ForkServer
from helpers.photos import draw_photos

CONFIG = """\
model: {name: squeezenet1_1, weights: none, preprocessing: {resize: 36, crop: 32}}
data: {root: PHOTOS, batch_size: 4}
train: {epochs: 2}
optimizer: {lr: 0.0003}
runtime: {precision: float32, memory_format: contiguous, live_precision: float32,
          live_memory_format: contiguous}
"""
KINDS = {
    # Every epoch decodes, in worker processes where there are any; dropout before the head.
    "everything": ["freeze.patterns=[]", "augment.policy=crop_flip"],
    # Three networks, one after the other, each cut elsewhere.
    "stages": [
        "stages=[{features: {cache: disk}}, "
        "{epochs: 1, freeze: {patterns: ['*', '!features.12.*']}, features: {cache: disk}}, "
        "{epochs: 1, freeze: {patterns: []}, augment: {policy: crop_flip}}]",
    ],
    # The frozen part is computed once and kept on disk: filled, then read. Norm layers, averages.
    "part": [
        *("model.name=shufflenet_v2_x0_5", "freeze.patterns=['*', '!conv5.*']"),
        *("features.cache=disk", "train.ema=0.9"),
    ],
}


@dataclass(frozen=True)
class Runs:
    """A folder of photos and runs, and runs of each kind that nobody stopped.

    Attributes:
        seconds: What those took.
    """

    folder: Path
    server: ForkServer
    seconds: dict[str, float]

    def arguments(self, kind: str, run: str, *more: str, workers: int = 0) -> list[str]:
        """The command line of a run; its features lie in a folder of its own."""
        settings = [
            *KINDS[kind],
            *(f"output_dir={self.folder / run}", f"features.dir={self.folder / run}-features"),
            f"data.workers={workers}",
        ]
        pairs = [word for setting in settings for word in ("--set", setting)]
        return ["train", "--config", str(self.folder / "c.yaml"), *pairs, *more]


def serve_runs(folder: Path) -> Iterator[Runs]:
    """Forked from one process, each kind once to its end."""
    if not hasattr(os, "fork"):
        pytest.skip("forks processes")
    for split, count in (("train", 9), ("val", 5)):
        draw_photos(folder / "photos" / split, count=count)
    (folder / "c.yaml").write_text(CONFIG.replace("PHOTOS", str(folder / "photos")))
    (folder / "io").mkdir()
    server = ForkServer(folder / "io", XDG_CACHE_HOME=new_cache(folder / "cache"))
    runs = Runs(folder, server, {})
    try:
        for kind in KINDS:
            start = time.monotonic()
            code, err = server.run(*runs.arguments(kind, kind))
            assert code == 0, err
            runs.seconds[kind] = time.monotonic() - start
        yield runs
    finally:
        server.close()
