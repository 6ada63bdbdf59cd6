"""How long the parts of an epoch take here, measured on one real batch of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from finetune.config import Config
from finetune.data.images import TrainVal
from finetune.data.loading import PhotoDataset
from finetune.data.views import Views
from finetune.engine import Engine
from finetune.evaluate import evaluate
from finetune.form import wait_for_device
from finetune.loop import train_epochs
from finetune.optim import build_optimizer
from finetune.results import PredictedTime
from finetune.runtime import available_cores
from finetune.schedules import build_schedule
from finetune.split import Features

_MOST_IMAGES = 32
_STEPS = 3

T = TypeVar("T")


def predict_time(engine: Engine, config: Config, data: TrainVal, views: Views) -> PredictedTime:
    """Time one batch of decoding, of the frozen prefix and of the live part; add them up.

    Args:
        config: Resolved.
    """
    count = min(_MOST_IMAGES, len(data.train))
    dataset = PhotoDataset(data.train, engine.computation.preprocessing, views)
    decode_s, samples = _timed(lambda: dataset.__getitems__([(i, 0) for i in range(count)]))
    pixels = torch.stack([s[0] for s in samples if isinstance(s, tuple)])
    engine.computation(pixels)
    prefix_s, features = _timed(lambda: engine.computation.features(pixels))
    train_s, val_s = _time_live(engine, config, features)
    # Each core decodes images of its own; so does each worker process.
    decode = decode_s / len(pixels) / max(available_cores(), config.data.workers)
    prefix = prefix_s / len(pixels)
    live = len(data.train) * train_s + len(data.val) * val_s
    every_image = len(data.train) + len(data.val)
    without = live + every_image * (decode + prefix)
    if engine.split.prefix is None or config.features.cache == "off":
        return PredictedTime(None, None, without)
    kept = views.count is not None
    rows = len(data.val) + (len(data.train) * (views.count or 0))
    decoded = every_image if kept else len(data.val)
    fill = rows * prefix + decoded * decode
    again = 0.0 if kept else len(data.train) * (decode + prefix)
    return PredictedTime(fill, live + again, without)


def _time_live(engine: Engine, config: Config, features: Features) -> tuple[float, float]:
    """Seconds for an image, in training and in evaluation: a few steps of the loop itself, with a
    copy of the live part."""
    live = copy.deepcopy(engine.live)
    inputs = _rows(features, config.data.batch_size)
    labels = torch.zeros(config.data.batch_size, dtype=torch.int64, device=engine.device)
    num_classes = _evaluated(live, inputs).shape[1]
    # Groups take no time of their own, and go by names that a live part does not have.
    alike = config.optimizer.model_copy(update={"groups": (), "layer_decay": None})
    optimizer = build_optimizer(live.named_parameters(), alike)
    schedule = build_schedule(optimizer, config.schedule, epochs=1, steps_per_epoch=2 * _STEPS)
    _warm, then = train_epochs(
        live,
        batches=lambda epoch: [(inputs, labels)] * (1 if epoch == 1 else _STEPS),
        optimizer=optimizer,
        schedule=schedule,
        set_mode=lambda: None,
        epochs=2,
        num_classes=num_classes,
        seed=config.seed,
    )
    val_s, _ = _timed(lambda: evaluate(live, [(inputs, labels)], num_classes=num_classes))
    return then.elapsed_s / then.num_images, val_s / len(labels)


@torch.no_grad()
def _evaluated(live: torch.nn.Module, inputs: Features) -> Tensor:
    output = live(inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output[0]
    return logits


def _rows(features: Features, count: int) -> Features:
    """As many rows as a batch of training has."""
    if isinstance(features, Tensor):
        return features[torch.arange(count) % len(features)]
    return tuple(tensor[torch.arange(count) % len(tensor)] for tensor in features)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    wait_for_device()
    start = time.perf_counter()
    result = work()
    wait_for_device()
    return time.perf_counter() - start, result
