"""Fine-tune torchvision image classifiers, with freezing by name patterns and cached features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.core.version import __version__ as __version__

if TYPE_CHECKING:
    import os

    from finetune.inference.predictor import Predictor


def load(run: str | os.PathLike[str], *, batch_size: int | None = None) -> Predictor:
    """Load a trained network for prediction.

        model = finetune.load("runs/pets")
        print(model.predict("photo.jpg")[0].label)

    Args:
        run: Run directory, whose best checkpoint is loaded, or checkpoint file.
        batch_size: Number of images per batch; default: the batch size used in training.

    Raises:
        finetune.core.errors.CheckpointError: The checkpoint is missing, damaged or not written by
            finetune.
    """
    from finetune.inference.predictor import open_predictor  # delays the import of torch

    return open_predictor(run, batch_size=batch_size)
