"""Fine-tune torchvision image classifiers, with freezing by name patterns and cached features.

import finetune

run = finetune.train("pets.yaml", train={"epochs": 20})
print(run.metrics["top1"], run.predict("photo.jpg")[0].label)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.core.version import __version__ as __version__

if TYPE_CHECKING:
    import os

    from finetune.api import Report as Report
    from finetune.api import Run as Run
    from finetune.api import evaluate as evaluate
    from finetune.api import predict as predict
    from finetune.api import train as train
    from finetune.inference.predictor import Predictor

_FROM_API = frozenset({"Report", "Run", "evaluate", "predict", "train"})


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


def __getattr__(name: str) -> Any:
    """Return a function of the Python interface, whose import of torch is delayed until then."""
    if name in _FROM_API:
        from finetune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_API})
