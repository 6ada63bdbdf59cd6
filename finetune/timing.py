"""How long the parts of an epoch take here, measured on one real batch of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetune.config import Config
from finetune.data.folders import TrainVal
from finetune.data.loading import PhotoDataset
from finetune.data.views import Views
from finetune.engine import Engine
from finetune.results import PredictedTime

_MOST_IMAGES = 32


def predict_time(engine: Engine, config: Config, data: TrainVal, views: Views) -> PredictedTime:
    """Time one batch of decoding, of the frozen prefix and of the live part; add them up.

    Args:
        config: Resolved.
    """
    count = min(config.data.batch_size, _MOST_IMAGES, len(data.train))
    dataset = PhotoDataset(data.train, engine.computation.preprocessing, Views.of("none"))
    decode_s, samples = _timed(lambda: dataset.__getitems__([(i, 0) for i in range(count)]))
    pixels = torch.stack([s[0] for s in samples if isinstance(s, tuple)])
    engine.computation(pixels)
    prefix_s, inputs = _timed(lambda: engine.computation.features(pixels))
    forward_s, backward_s = _time_live(engine, inputs)
    per_image = 1 / len(pixels)
    # Worker processes decode while the main process computes, on the same cores.
    decode = decode_s * per_image
    prefix = prefix_s * per_image
    train_live = len(data.train) * (forward_s + backward_s) * per_image
    val_live = len(data.val) * forward_s * per_image
    every_image = len(data.train) + len(data.val)
    without = train_live + val_live + every_image * (decode + prefix)
    if engine.split.prefix is None or config.features.cache == "off":
        return PredictedTime(None, None, without)
    kept = views.count is not None
    rows = len(data.val) + (len(data.train) * (views.count or 0))
    decoded = every_image if kept else len(data.val)
    fill = rows * prefix + decoded * decode
    again = 0.0 if kept else len(data.train) * (decode + prefix)
    return PredictedTime(fill, train_live + val_live + again, without)


def _time_live(engine: Engine, inputs: Any) -> tuple[float, float]:
    live = copy.deepcopy(engine.live)

    def forward() -> Tensor:
        output = live(inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output[0]
        return logits

    forward().sum().backward()  # type: ignore[no-untyped-call]
    forward_s, logits = _timed(forward)
    backward_s, _ = _timed(lambda: logits.sum().backward())
    return forward_s, backward_s


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
