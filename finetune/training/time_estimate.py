"""Estimated duration of a training, from timing one real batch of each part on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from finetune.config.resolved import ResolvedConfig
from finetune.data.images import TrainVal
from finetune.data.loading.dataloader import PhotoDataset
from finetune.data.loading.views import Views
from finetune.features.compute_format import wait_for_device
from finetune.features.engine import Engine
from finetune.features.rows import decode_seconds
from finetune.freezing.graph_split import Features
from finetune.results.train import PredictedTime
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.lr_schedulers import build_schedule
from finetune.training.optimizers import build_optimizer
from finetune.training.step import StepConfig

_MOST_IMAGES = 32
_STEPS = 3
_ENOUGH_S = 1.0
"""Seconds of steps after which no further step is timed."""

T = TypeVar("T")


def predict_time(
    engine: Engine, config: ResolvedConfig, data: TrainVal, views: Views
) -> PredictedTime:
    """Predict the training time from one timed batch of each part of the work.

    The time of the features is predicted as it is when they are computed.
    """
    count = min(_MOST_IMAGES, len(data.train))
    dataset = PhotoDataset(data.train, engine.extractor.preprocessing, views)
    decode = decode_seconds(dataset, range(count), config.data.workers)
    samples = dataset.__getitems__([(i, 0) for i in range(count)])
    pixels = torch.stack([s[0] for s in samples if isinstance(s, tuple)])
    engine.extractor(pixels)
    prefix_s, features = _timed(lambda: engine.extractor.features(pixels))
    train_s, val_s = _time_trainable_part(engine, config, features)
    prefix = engine.prefix_seconds or prefix_s / len(pixels)
    val_rows = len(data.val) * config.model.num_views
    trainable_part = len(data.train) * train_s + val_rows * val_s
    every_image = len(data.train) + len(data.val)
    without = trainable_part + every_image * decode + (len(data.train) + val_rows) * prefix
    if engine.split.prefix is None or config.features.cache == "off":
        return PredictedTime(None, None, without)
    kept = views.count is not None
    rows = val_rows + (len(data.train) * (views.count or 0))
    decoded = every_image if kept else len(data.val)
    fill = rows * prefix + decoded * decode
    again = 0.0 if kept else len(data.train) * (decode + prefix)
    return PredictedTime(fill, trainable_part + again, without)


def _time_trainable_part(
    engine: Engine, config: ResolvedConfig, features: Features
) -> tuple[float, float]:
    """Return seconds per image in training and evaluation, from a few steps of a copy."""
    trainable_part = copy.deepcopy(engine.trainable_part)
    inputs = _rows(features, config.data.batch_size)
    labels = torch.zeros(config.data.batch_size, dtype=torch.int64, device=engine.device)
    num_classes = _evaluated(trainable_part, inputs).shape[1]
    # Parameter groups cost no time, and refer to names that the trainable part does not have.
    alike = config.optimizer.with_values({"groups": (), "layer_decay": None})
    optimizer = build_optimizer(trainable_part.named_parameters(), alike)
    schedule = build_schedule(optimizer, config.schedule, epochs=1, steps_per_epoch=2 * _STEPS)

    def batches(epoch: int) -> Iterator[tuple[Features, Tensor]]:
        start = time.perf_counter()
        for _ in range(1 if epoch == 1 else _STEPS):
            yield inputs, labels
            if time.perf_counter() - start > _ENOUGH_S:
                return

    _warm, then = train_epochs(
        LoopState(trainable_part, optimizer, schedule, num_classes),
        batches,
        epochs=2,
        step=StepConfig(seed=config.seed),
        callbacks=Callbacks(set_mode=lambda: None),
    )
    val_s, _ = _timed(lambda: evaluate(trainable_part, [(inputs, labels)], num_classes=num_classes))
    return then.elapsed_s / then.num_images, val_s / len(labels)


@torch.no_grad()
def _evaluated(trainable_part: torch.nn.Module, inputs: Features) -> Tensor:
    output = trainable_part(*inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits


def _rows(features: Features, count: int) -> Features:
    """Return features repeated or truncated to ``count`` rows, the size of a training batch."""
    return tuple(tensor[torch.arange(count) % len(tensor)] for tensor in features)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    wait_for_device()
    start = time.perf_counter()
    result = work()
    wait_for_device()
    return time.perf_counter() - start, result
