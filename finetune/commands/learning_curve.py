"""``finetune learning-curve``: how much more training photos are expected to help."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from finetune.config.schema import Config
from finetune.core.errors import DataError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import plural
from finetune.data.images import Images, TrainVal
from finetune.inference.confidence_intervals import wilson
from finetune.report.tuning_plots import CURVE_BY, check_picture, draw_learning_curve
from finetune.results.learning_curve import (
    ClassProjection,
    CurvePoint,
    LearningCurve,
    PowerLaw,
    Projected,
)
from finetune.training.setup import without_validation
from finetune.tuning.frozen_features import frozen_features
from finetune.tuning.learning_curve import (
    NUM_DRAWS,
    PENALTY,
    Estimate,
    fewest_images,
    fit_curve,
    measure_errors,
)


def learning_curve(
    config: Config, *, picture: Path | None = None, reporter: Reporter | None = None
) -> LearningCurve:
    """Measure the accuracy of heads on parts of the training photos, and project it to twice them.

    The heads are fitted to features of the pretrained network; what the config freezes or trains
    does not matter.

    Args:
        picture: Output PNG file of the plot.

    Raises:
        ConfigError: there are no validation images, or ``picture`` is not a PNG file name.
        DataError: there are too few training images.
        FinetuneError: any other subclass of it.
    """
    start = time.perf_counter()
    shown = reporter or SilentReporter()
    if picture is not None:
        check_picture(picture, CURVE_BY)
    found = frozen_features(config, shown, check=_refuse_too_few)
    if found.counts is not None:
        shown.say(found.counts.in_words)
    train, val = found.data.train, found.data.val
    errors = measure_errors(
        found.train,
        torch.tensor(train.labels),
        found.val,
        torch.tensor(val.labels),
        num_classes=len(found.class_names),
        groups=train.groups,
        val_groups=val.groups,
        seed=config.seed,
        reporter=shown,
    )
    fit = fit_curve(errors, seed=config.seed)
    shares = 1 - errors.wrong.mean(axis=2)
    spec = found.stage_setup.plan.spec
    result = LearningCurve(
        model=spec.name,
        weights=spec.weights,
        num_classes=len(found.class_names),
        num_train=len(train),
        num_val=len(val),
        num_draws=NUM_DRAWS,
        penalty=PENALTY,
        points=tuple(
            CurvePoint(
                size,
                *_accuracy(point, len(val)),
                draws=tuple(shares[: 1 if size == len(train) else NUM_DRAWS, at].tolist()),
            )
            for at, (size, point) in enumerate(zip(errors.sizes, fit.points, strict=True))
        ),
        law=PowerLaw(fit.floor, fit.scale, fit.exponent),
        projected=_projected(fit.projected, fit.gain, len(train), len(val)),
        per_class=_per_class(fit.classes, train, val),
        picture=None if picture is None else str(picture),
        elapsed_s=time.perf_counter() - start,
        features=found.counts,
    )
    if picture is not None:
        draw_learning_curve(result, picture)
    return replace(result, elapsed_s=time.perf_counter() - start)


def _refuse_too_few(data: TrainVal) -> None:
    """Raise if there are no validation images, or too few training images for several sizes."""
    if not len(data.val):
        raise without_validation("heads are judged", "set a fraction above 0")
    fewest = fewest_images(len(data.train.class_names))
    if len(data.train) < fewest:
        raise DataError(
            f"{plural(len(data.train), 'training image')} of "
            f"{plural(len(data.train.class_names), 'class')} are too few for a learning curve, "
            f"which needs at least {fewest:,}",
            kind="data.too_few_for_curve",
            key="data.root",
            to_do="add photos; with so few, more will most likely help",
        )


def _per_class(
    classes: tuple[tuple[int, float, Estimate, Estimate], ...], train: Images, val: Images
) -> tuple[ClassProjection, ...]:
    known, judged = train.counts(), val.counts()
    found = [
        ClassProjection(
            name=train.class_names[label],
            num_train=known[label],
            num_val=judged[label],
            top1=1 - now,
            projected=_projected(projected, gain, known[label], judged[label]),
        )
        for label, now, projected, gain in classes
    ]
    return tuple(sorted(found, key=lambda one: -one.projected.gain))


def _projected(error: Estimate, gain: Estimate, num_train: int, num_val: int) -> Projected:
    top1, low, high = _accuracy(error, num_val)
    return Projected(2 * num_train, top1, low, high, gain.value, gain.low, gain.high)


def _accuracy(error: Estimate, num_val: int) -> tuple[float, float, float]:
    """Return accuracy and bounds: Wilson's if resampling found no spread, as without mistakes."""
    low, high = 1 - error.high, 1 - error.low
    if high - low < 1e-9:
        interval = wilson(round((1 - error.value) * num_val), num_val)
        assert interval is not None
        low, high = interval.low, interval.high
    return 1 - error.value, low, high
