"""Fine-tune torchvision image classifiers with pattern freezing, and pay only for what trains."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from finetune.predictor import Predictor

try:
    __version__ = version("finetune-vision")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"


def load(run: str | os.PathLike[str], *, batch_size: int | None = None) -> Predictor:
    """Load a trained network to label images with.

        model = finetune.load("runs/pets")
        print(model.predict("photo.jpg")[0].label)

    Args:
        run: A run's folder, whose best checkpoint is taken, or a checkpoint file.
        batch_size: Images at a time; by default as in training.

    Raises:
        finetune.errors.CheckpointError: it is absent, damaged, or no checkpoint of finetune.
    """
    from finetune.predictor import open_predictor  # torch: not before it is needed

    return open_predictor(run, batch_size=batch_size)
