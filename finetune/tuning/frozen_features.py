"""Inputs of the head of a run's pretrained network, for all images of its data.

The questions about data (which labels are doubtful, which photos to label next, how much more of
them would help) are answered with these features instead of those of a trained network, which has
seen the labels that are in question. Where the head alone trains they are in the feature cache.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.checkpoints.finetuned_source import find_source_run
from finetune.config.schema import Config
from finetune.core.reporter import Reporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.data.images import Images, TrainVal
from finetune.features.source import FeatureBatches
from finetune.models.build import is_path
from finetune.recipes.ladder import probe_of
from finetune.results.features import FeatureCounts, total
from finetune.training.prepare_stage import StageSetup, plain_batches_of, prepare_stage
from finetune.training.setup import RunSetup, set_up_run


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of the training and validation images, without augmentation.

    Attributes:
        stage_setup: Setup of a run that trains the new head alone.
        train: Features of the training images, ``(N, D)`` float32 on the CPU.
        val: Features of the validation images, ``(M, D)`` float32 on the CPU; M may be 0.
        counts: Rows of features computed and reused; None if none are kept.
        seconds: Duration of setting up and of computing the features.
    """

    stage_setup: StageSetup
    train: Tensor
    val: Tensor
    counts: FeatureCounts | None
    seconds: float

    @property
    def data(self) -> TrainVal:
        """Training and validation images, without unreadable ones."""
        return self.stage_setup.data

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.data.train.class_names


def frozen_features(
    config: Config, reporter: Reporter, *, check: Callable[[TrainVal], None] = lambda _: None
) -> FrozenFeatures:
    """Compute the inputs of the head of a config's network with its pretrained weights.

    Features are read from the feature cache and added to it. What the config freezes or trains
    does not matter.

    Args:
        check: Function that raises if the data is not enough, called before features are computed.

    Raises:
        FinetuneError: any subclass of it.
    """
    return dropping_unreadable(
        lambda _: _computed(config, reporter, check),
        on_unreadable=config.data.on_unreadable,
        reporter=reporter,
    )


def set_up_frozen(config: Config, reporter: Reporter) -> RunSetup:
    """Set up a run in which everything but the new head is frozen, and which writes nothing.

    Raises:
        FinetuneError: any subclass of it.
    """
    # Nothing is trained or written, so that the weights may be those of the run in output_dir.
    values: dict[str, object] = {"output_dir": f"{config.output_dir}-features"}
    if is_path(config.model.weights) and find_source_run(config.model.weights) is not None:
        values["freeze.may_differ"] = True
    return set_up_run(probe_of(config).with_values(values), reporter)


def _computed(
    config: Config, reporter: Reporter, check: Callable[[TrainVal], None]
) -> FrozenFeatures:
    start = time.perf_counter()
    run_setup = set_up_frozen(config, reporter)
    check(run_setup.data)
    stage_setup = prepare_stage(run_setup, reporter)
    data = stage_setup.data
    train = plain_batches_of(stage_setup, data.train, reporter, what="training")
    found = [rows_of(train)[0]]
    counts = [train.counts]
    if len(data.val):
        val = plain_batches_of(stage_setup, data.val, reporter, what="validation")
        found.append(rows_of(val)[0])
        counts.append(val.counts)
    else:
        found.append(found[0][:0])
    return FrozenFeatures(
        stage_setup, found[0], found[1], total(counts), time.perf_counter() - start
    )


def rows_of(batches: FeatureBatches) -> tuple[Tensor, Tensor]:
    """Return the features ``(N, D)`` float32 and the labels ``(N,)`` of an epoch, on the CPU.

    Maps ``(C, H, W)`` are averaged over their positions.
    """
    features, labels = [], []
    for tensors, of_batch in batches.epoch():
        rows = tensors[0]
        features.append((rows.mean(dim=(2, 3)) if rows.dim() == 4 else rows.flatten(1)).cpu())
        labels.append(of_batch.cpu())
    return torch.cat(features).float(), torch.cat(labels)


def groups_in(images: Sequence[Images], features: Tensor) -> tuple[str, ...]:
    """Return the group of each image of several splits, for `finetune.data.splits.folds`.

    Args:
        features: Features of all images ``(N, D)``.

    Returns:
        Groups of the data; without them, images with equal features, which are copies of each
        other, are a group.
    """
    if all(len(some.groups) == len(some) for some in images):
        return tuple(group for some in images for group in some.groups)
    return tuple(hashlib.sha256(row.tobytes()).hexdigest() for row in features.numpy())
