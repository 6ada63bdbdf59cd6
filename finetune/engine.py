"""A network ready to train or to be evaluated: split, in its form, with its batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.computation import CPU_ROWS, Computation, forward_runner, frozen_identity
from finetune.config import Config, PreprocessingConfig
from finetune.data.folders import Images
from finetune.data.loading import Batches, PhotoDataset
from finetune.data.views import Views
from finetune.features import (
    CachedFeatures,
    FreshFeatures,
    Source,
    decide_cache,
    filled_store,
    layout_of,
)
from finetune.form import Choice, Form, choose_form, lacks, training_runner
from finetune.progress import Progress
from finetune.runtime import available_cores, available_memory_bytes
from finetune.split import WORTH_KEEPING_BYTES, Features, Split, split_model

_SHARE_OF_MEMORY = 4
"""Decoded images may take this part of what is free."""


@dataclass(frozen=True)
class Engine:
    """The two parts of a network and how they compute.

    Attributes:
        live: What the loop trains; it takes what a `Source` yields.
        choice: The form of arithmetic, and what was timed to find it.
    """

    split: Split
    live: nn.Module
    choice: Choice
    computation: Computation

    @property
    def form(self) -> Form:
        """Of the frozen prefix; without one, of everything."""
        return self.choice.form

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.computation.device

    @property
    def worth_keeping(self) -> bool:
        """Whether there are features, small enough to keep."""
        if self.split.prefix is None:
            return False
        return self.computation.image_bytes <= WORTH_KEEPING_BYTES


class _Autocast(nn.Module):
    """A model without a prefix in bfloat16, where torch finds that safe; logits in float32."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.device_type = device.type

    def forward(self, images: Features) -> Any:
        """As the module, in float32."""
        with torch.autocast(self.device_type, torch.bfloat16):
            output = self.module(images)
        if isinstance(output, Tensor):
            return output.float()
        return tuple(part.float() for part in output if part is not None)


def build_engine(
    model: nn.Module,
    config: Config,
    preprocessing: PreprocessingConfig,
    images: Images,
    *,
    frozen: dict[str, str],
    device: torch.device,
    progress: Progress,
    skeleton: nn.Module | None = None,
) -> Engine:
    """Split a network whose ``requires_grad`` flags and modes are set for training.

    Args:
        model: On the device. Its live modules become part of the engine, and train in place.
        images: A few of them are decoded where forms of arithmetic have to be timed.
        frozen: Name and SHA-256 of every frozen tensor.
        skeleton: The same network on the meta device, where there is one already.
    """
    if lacks(device, config.runtime.precision):
        progress.warn(
            f"this {device.type} device has no {config.runtime.precision}: float32 is used, and "
            "figures may differ in the last digits"
        )
    split = split_model(model, crop=preprocessing.crop, skeleton=skeleton)
    identity = frozen_identity(split, frozen)
    choice = _choose_form(model, split, config, preprocessing, images, identity, device, progress)
    form = choice.form
    prefix = split.prefix
    if prefix is not None:
        prefix = form.compile(form.arrange(prefix, cast=True))
    computation = Computation(prefix, split.crossing, form, preprocessing, device, identity)
    live = form.compile(form.arrange(split.live, cast=False))
    if prefix is None and form.precision == "bfloat16":
        live = _Autocast(live, device)
    return Engine(split, live, choice, computation)


def _choose_form(
    model: nn.Module,
    split: Split,
    config: Config,
    preprocessing: PreprocessingConfig,
    images: Images,
    identity: str,
    device: torch.device,
    progress: Progress,
) -> Choice:
    plain = Computation(None, (), Form(), preprocessing, device, "")

    timed_images = CPU_ROWS * (available_cores() if split.prefix and device.type == "cpu" else 1)

    @functools.cache
    def pixels() -> Tensor:
        return _some_pixels(images, preprocessing, timed_images)

    def run(form: Form) -> Callable[[], Tensor]:
        if split.prefix is not None:
            return forward_runner(split.prefix, plain, pixels())(form)
        return training_runner(model, *plain(pixels()))(form)

    choice = choose_form(
        config.runtime,
        run,
        device=device,
        images=timed_images,
        work=len(images) * (1 if split.prefix is not None else config.train.epochs),
        key=identity,
    )
    if choice.seconds:
        timed = ", ".join(f"{name} {1 / seconds:,.0f}" for name, seconds in choice.seconds.items())
        progress.say(f"fastest form here: {choice.form} (images/s: {timed})")
    return choice


def _some_pixels(images: Images, preprocessing: PreprocessingConfig, number: int) -> Tensor:
    """A batch to time with, from all over the images; blank where none can be decoded."""
    dataset = PhotoDataset(images, preprocessing, Views.of("none"))
    count = min(number, len(images))
    samples = dataset.__getitems__([(i * len(images) // count, 0) for i in range(count)])
    pixels = [sample[0] for sample in samples if isinstance(sample, tuple)]
    blank = torch.zeros(3, preprocessing.crop, preprocessing.crop, dtype=torch.uint8)
    chosen = pixels or [blank]
    return torch.stack([chosen[i % len(chosen)] for i in range(number)])


def resolve_cache(
    config: Config, engine: Engine, num_train: int, num_val: int, views: Views, progress: Progress
) -> str:
    """What ``features.cache`` means for this run."""
    if engine.split.prefix is None:
        return "off"
    computation = engine.computation
    rows_bytes = layout_of(computation, num_val, 1).num_bytes
    if views.count is not None:
        rows_bytes += layout_of(computation, num_train, views.count).num_bytes
    return decide_cache(config.features, computation, rows_bytes, progress=progress)


def make_source(
    engine: Engine,
    config: Config,
    images: Images,
    *,
    views: Views,
    workers: int,
    shuffle: bool,
    what: str,
    progress: Progress,
) -> Source:
    """The batches of one split, in the form that the live part takes.

    Args:
        config: Resolved: ``features.cache`` is not auto.
    """
    batch_size = config.data.batch_size
    if config.features.cache != "off" and views.count is not None and engine.split.prefix:
        store = filled_store(
            config.features,
            config.features.cache,
            engine.computation,
            images,
            views,
            workers=workers,
            what=what,
            progress=progress,
        )
        return CachedFeatures(
            store,
            images,
            batch_size=batch_size,
            views=views,
            shuffle=shuffle,
            device=engine.device,
        )
    batches = Batches(
        images,
        engine.computation.preprocessing,
        batch_size=batch_size,
        workers=workers,
        device=engine.device,
        views=views,
        shuffle=shuffle,
        keep_bytes=available_memory_bytes() // _SHARE_OF_MEMORY if config.train.epochs > 1 else 0,
    )
    return FreshFeatures(batches, engine.computation)
