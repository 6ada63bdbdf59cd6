"""Decode photos in two workers: small_shared_memory.py SHARED_MEMORY PHOTOS."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from finetune.config.schema import PreprocessingConfig
from finetune.core.errors import DataError
from finetune.data.images import Images
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.views import Views


def main() -> None:
    paths = tuple(sorted(Path(sys.argv[2]).rglob("*.png")))
    batches = Batches(
        PhotoDataset(
            Images(paths, (0,) * len(paths), ("a",)),
            PreprocessingConfig(resize=256, crop=256),
            Views.of("none"),
        ),
        batch_size=4,
        workers=2,
        device=torch.device("cpu"),
    )
    try:
        for _ in batches.epoch():
            pass
    except DataError as error:
        print(error)


if __name__ == "__main__":
    main()
