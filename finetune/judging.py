"""What the trials of a search are trained and judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.optim import Optimizer

from finetune.config import Config, OptimizerConfig
from finetune.data.balance import class_weights
from finetune.data.folds import Fold
from finetune.data.images import Images
from finetune.engine import Engine
from finetune.features import Source

HELD_OUT_BATCH = 256
"""Images at once where nothing is trained: their size decides nothing but speed."""


class Part(Protocol):
    """Gives the batches of some training images."""

    def __call__(self, positions: Sequence[int], *, batch_size: int, training: bool) -> Source:
        """As training sees them, or as they are judged by."""


@dataclass(frozen=True)
class Ground:
    """What every trial is trained and judged on.

    Attributes:
        config: Resolved.
        train: The training images.
        folds: Of these; none where the validation split judges.
        live_work: Multiply-adds of the live part's forward pass, for an image.
        kept: Features of the training images are there, whatever is asked of them.
        part: Batches of some training images.
        validation: The validation images' batches, where they judge.
        optimizer_of: A new one over what trains.
        set_mode: Puts the live part's modules into their modes for training.
    """

    engine: Engine
    config: Config
    train: Images
    folds: tuple[Fold, ...]
    live_work: int
    kept: bool
    part: Part
    validation: Source | None
    optimizer_of: Callable[[OptimizerConfig], Optimizer]
    set_mode: Callable[[], None]
    aux_weight: float

    @property
    def num_classes(self) -> int:
        """Of the data."""
        return len(self.train.class_names)

    def rounds(self) -> list[Round]:
        """Each fold, or all training images and the validation split."""
        if not self.folds:
            assert self.validation is not None
            return [Round(self, tuple(range(len(self.train))), self.validation)]
        return [
            Round(
                self,
                fold.train,
                self.part(fold.held_out, batch_size=HELD_OUT_BATCH, training=False),
            )
            for fold in self.folds
        ]


@dataclass(frozen=True)
class Round:
    """One fold: what is trained on, and what judges."""

    ground: Ground
    positions: tuple[int, ...]
    held_out: Source

    def batches(self, batch_size: int) -> Source:
        """To train on."""
        return self.ground.part(self.positions, batch_size=batch_size, training=True)

    def class_weights(self) -> list[float] | None:
        """Of these very images."""
        if self.ground.config.data.balance != "weights":
            return None
        return class_weights(self.ground.train.subset(self.positions).counts())
