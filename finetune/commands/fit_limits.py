"""Fitting the limits of a network's answers at the end of ``train`` and in ``eval --calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from finetune.checkpoints.limits import Limits
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import Images
from finetune.inference.calibration import probabilities
from finetune.inference.limits import MOST_VALIDATION, evenly, fit_limits, spread_over_classes
from finetune.inference.load import LoadedNetwork, open_network
from finetune.inference.predictor import Predictor
from finetune.training.prepare_stage import StageSetup


def add_limits(
    path: Path,
    stage_setup: StageSetup,
    reporter: Reporter,
    *,
    reuses_network: bool,
) -> None:
    """Fit the limits of a trained network, and store them in its checkpoint.

    Nothing is stored if no photo can be read any more.

    Args:
        path: Checkpoint.
        stage_setup: Setup of the last stage.
        reuses_network: Whether the weights of the checkpoint fit the network of this stage, which
            then has them afterwards. A new one takes longer.
    """
    train, val = stage_setup.data.train, stage_setup.data.val
    reporter.status("fitting the distance to the training photos")
    found = read_checkpoint(path)
    if reuses_network:
        stage_setup.model.load_state_dict(found.model)
        opened = LoadedNetwork(found.metadata, stage_setup.model, stage_setup.engine)
    else:
        none = Images((), (), train.class_names)
        opened = open_network(path, found.model, found.metadata, none, reporter=SilentReporter())
    predictor = Predictor(opened)
    val = val.subset(evenly(range(len(val)), MOST_VALIDATION))
    embeddings, logits, at = _embedded(predictor, val)
    if not at:
        return
    shares = probabilities(logits, found.metadata.temperature)
    limits = limits_of(predictor, train, embeddings, shares, val.subset(at).labels)
    if limits is not None:
        save_checkpoint(path, found.model, found.metadata, training=found.training, limits=limits)


def limits_of(
    predictor: Predictor,
    train: Images,
    embeddings: Tensor,
    shares: Tensor,
    labels: Sequence[int],
) -> Limits | None:
    """Return the limits of a network, or None if no training photo can be read.

    Args:
        train: Training images, of which some are read.
        embeddings: Embeddings of validation images ``(M, d)``.
        shares: Their probabilities ``(M, classes)``.
        labels: Their class indices.
    """
    some = train.subset(spread_over_classes(train.labels, len(train.class_names)))
    rows, _, at = _embedded(predictor, some)
    if not at:
        return None
    known = torch.tensor(some.subset(at).labels)
    return fit_limits(rows, known, embeddings, shares, torch.tensor(labels))


def _embedded(predictor: Predictor, images: Images) -> tuple[Tensor, Tensor, list[int]]:
    """Return the embeddings and logits of images, and the positions of those that can be read."""
    blocks = list(predictor.embeddings(images.paths))
    at = [position for block in blocks for position in block.positions]
    if not at:
        return torch.empty(0), torch.empty(0), at
    rows = torch.cat([block.vectors for block in blocks])
    return rows, torch.cat([block.logits for block in blocks]), at
