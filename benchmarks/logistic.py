"""scikit-learn's logistic regression on the features that `finetune` keeps."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from finetune.commands.preparation import Prepared, prepare_alone, source_of
from finetune.config_file import load_config
from finetune.data.folds import make_folds
from finetune.data.holdout import keys_of
from finetune.data.images import Images
from finetune.data.sources import find_split
from finetune.data.views import Views
from finetune.engine import make_source
from finetune.features import CachedFeatures, Source
from finetune.progress import Silent

STRENGTHS = [10.0**exponent for exponent in range(-4, 4)]
Known = tuple[np.ndarray, np.ndarray]
"""Features and labels."""


def logistic_regression(config_file: Path, num_folds: int, scored: str) -> dict[str, Any]:
    """Choose C on the folds of the training images, or on the validation images where there are
    none, fit on all training images, and score a split. Without augmentation."""
    warnings.simplefilter("ignore")  # where a weak C has not converged after so many steps
    config = load_config(config_file)
    prepared = prepare_alone(config, Silent(), what="the comparison")
    images = prepared.data.train
    train = _known(source_of(prepared, Silent(), training=True), images)
    val = _known(source_of(prepared, Silent(), training=False), prepared.data.val)
    judge = val if scored == "val" else _of_split(prepared, scored)
    rounds = [(train, val)]
    if num_folds:
        names = keys_of(images.paths, prepared.data.base)
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


def _known(source: Source, images: Images) -> Known:
    assert isinstance(source, CachedFeatures)
    part = source.part(range(len(images)), batch_size=1024, training=False)
    rows = [features for features, _ in part.epoch()]
    return np.concatenate([np.asarray(one).reshape(len(one), -1) for one in rows]), np.array(
        images.labels
    )


def _of_split(prepared: Prepared, split: str) -> Known:
    config = prepared.config
    names = prepared.data.train.class_names
    images = find_split(config.data, split, class_names=names, seed=config.seed, root=None)
    source = make_source(
        prepared.engine,
        config,
        images,
        views=Views.of("none"),
        workers=config.data.workers,
        shuffle=False,
        what=split,
        progress=Silent(),
    )
    return _known(source, images)
