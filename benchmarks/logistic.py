"""scikit-learn's logistic regression on the features that `finetune` caches."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from finetune.config.load import load_config
from finetune.core.reporter import SilentReporter
from finetune.data.images import Images
from finetune.data.loading.views import Views
from finetune.data.sources.open import find_split
from finetune.data.splits.folds import make_folds
from finetune.data.splits.holdout import keys_of
from finetune.features.engine import Split, make_source
from finetune.features.source import CachedFeatures, FeatureBatches
from finetune.training.prepare_stage import StageSetup, feature_batches_of, prepare_single_stage

STRENGTHS = [10.0**exponent for exponent in range(-4, 4)]
Known = tuple[np.ndarray, np.ndarray]
"""Pair of features and labels."""


def logistic_regression(config_file: Path, num_folds: int, scored: str) -> dict[str, Any]:
    """Select C, fit on all training images without augmentation, and score a split.

    C is selected by cross-validation on the training images, or on the validation images if
    ``num_folds`` is 0.
    """
    warnings.simplefilter("ignore")  # about fits that did not converge within max_iter
    config = load_config(config_file)
    stage_setup = prepare_single_stage(config, SilentReporter(), what="the comparison")
    images = stage_setup.data.train
    train = features_of(feature_batches_of(stage_setup, SilentReporter(), training=True), images)
    val = features_of(
        feature_batches_of(stage_setup, SilentReporter(), training=False), stage_setup.data.val
    )
    judge = val if scored == "val" else _of_split(stage_setup, scored)
    rounds = [(train, val)]
    if num_folds:
        names = keys_of(images.paths, stage_setup.data.base)
        folds = make_folds(images.labels, names, images.groups, num_folds, seed=config.seed)
        rounds = [(_rows(train, fold.train), _rows(train, fold.held_out)) for fold in folds]
    chosen_by = {
        strength: statistics.fmean(_score(strength, known, other) for known, other in rounds)
        for strength in STRENGTHS
    }
    strength = max(chosen_by, key=lambda one: chosen_by[one])
    return {
        "strength": strength,
        "when_chosen": chosen_by[strength],
        "top1": _score(strength, train, judge),
        "num_scored": len(judge[1]),
    }


def _score(strength: float, known: Known, judge: Known) -> float:
    return float(LogisticRegression(C=strength, max_iter=1000).fit(*known).score(*judge))


def _rows(known: Known, indices: tuple[int, ...]) -> Known:
    return known[0][list(indices)], known[1][list(indices)]


def features_of(source: FeatureBatches, images: Images) -> Known:
    """Return the features of images without augmentation, and their labels."""
    assert isinstance(source, CachedFeatures)
    part = source.part(range(len(images)), batch_size=1024, training=False)
    rows = [
        torch.cat([tensor.flatten(1) for tensor in features], dim=1) for features, _ in part.epoch()
    ]
    return torch.cat(rows).numpy(), np.array(images.labels)


def _of_split(stage_setup: StageSetup, split: str) -> Known:
    config = stage_setup.config
    names = stage_setup.data.train.class_names
    images = find_split(config.data, split, class_names=names, seed=config.seed, root=None)
    source = make_source(
        stage_setup.engine,
        config,
        Split(images, views=Views.of("none"), shuffle=False, what=split),
        workers=config.data.workers,
        reporter=SilentReporter(),
    )
    return features_of(source, images)
