"""Cross-validation of the trials of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.optim import Optimizer

from finetune.config.resolved import ResolvedConfig, ResolvedOptimizer
from finetune.data.images import Images
from finetune.data.loading.class_weights import class_weights
from finetune.data.splits.folds import Fold
from finetune.features.engine import Engine
from finetune.features.source import FeatureBatches
from finetune.results.features import FeatureCounts
from finetune.training.prepare_stage import StageSetup

HELD_OUT_BATCH = 256
"""Batch size for evaluation, where it affects only the speed."""


class Part(Protocol):
    """Function that returns the batches of some training images."""

    def __call__(
        self, positions: Sequence[int], *, batch_size: int, training: bool
    ) -> FeatureBatches:
        """Return batches of the images at ``positions``, in training views or for evaluation."""


@dataclass(frozen=True)
class CrossValidation:
    """Data, folds and engine shared by all trials of a search.

    Attributes:
        engine: Engine with the network to train.
        config: Config of the stage.
        train: Training images.
        folds: Folds of the training images; empty if the validation split is used instead.
        trainable_work: Multiply-adds of the trainable part's forward pass for one image.
        kept: Whether the features of the training images are cached.
        part: Function that returns the batches of some training images.
        validation: Batches of the validation images; None if there are folds.
        features: Rows of features computed and reused; None if none are kept.
        optimizer_of: Function that returns a new optimizer over the trainable parameters.
        set_mode: Function that puts the trainable part's modules into their modes for training.
        aux_weight: Weight of each auxiliary head's loss.
    """

    engine: Engine
    config: ResolvedConfig
    train: Images
    folds: tuple[Fold, ...]
    trainable_work: int
    kept: bool
    part: Part
    validation: FeatureBatches | None
    features: FeatureCounts | None
    optimizer_of: Callable[[ResolvedOptimizer], Optimizer]
    set_mode: Callable[[], None]
    aux_weight: float

    @classmethod
    def of(
        cls,
        stage_setup: StageSetup,
        folds: tuple[Fold, ...],
        part: Part,
        *,
        kept: bool,
        validation: FeatureBatches | None = None,
        features: FeatureCounts | None = None,
    ) -> CrossValidation:
        """Construct the cross-validation of a stage that is set up."""
        return cls(
            engine=stage_setup.engine,
            config=stage_setup.config,
            train=stage_setup.data.train,
            folds=folds,
            trainable_work=stage_setup.plan.cost.forward_trainable,
            kept=kept,
            part=part,
            validation=validation,
            features=features,
            optimizer_of=stage_setup.optimizer_of,
            set_mode=stage_setup.set_mode,
            aux_weight=stage_setup.plan.spec.family.aux_weight,
        )

    @property
    def num_classes(self) -> int:
        """Number of classes in the data."""
        return len(self.train.class_names)

    def fold_data(self) -> list[FoldData]:
        """Return the data of each fold; without folds, only that of the validation split."""
        if not self.folds:
            assert self.validation is not None
            return [FoldData(self, tuple(range(len(self.train))), self.validation)]
        return [
            FoldData(
                self,
                fold.train,
                self.part(fold.held_out, batch_size=HELD_OUT_BATCH, training=False),
            )
            for fold in self.folds
        ]


@dataclass(frozen=True)
class FoldData:
    """Training images and held-out images of one fold.

    Attributes:
        cv: Data and engine of the cross-validation.
        positions: Indices of the training images of this fold.
        held_out: Batches of the held-out images.
    """

    cv: CrossValidation
    positions: tuple[int, ...]
    held_out: FeatureBatches

    def batches(self, batch_size: int) -> FeatureBatches:
        """Return the training batches of this fold."""
        return self.cv.part(self.positions, batch_size=batch_size, training=True)

    def class_weights(self) -> list[float] | None:
        """Return class weights for this fold's training images; None if they are not weighted."""
        if self.cv.config.data.balance != "weights":
            return None
        return class_weights(self.cv.train.subset(self.positions).counts())
