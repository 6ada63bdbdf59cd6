"""A network ready to train or to be evaluated: split, in its form, with its batches."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.computation import CPU_ROWS, Computation, forward_runner, frozen_identity
from finetune.config import Config, PreprocessingConfig, RuntimeConfig
from finetune.cost import Cost, measure_cost
from finetune.data.images import Images
from finetune.data.loading import Batches, PhotoDataset
from finetune.data.mixing import Mixing
from finetune.data.views import Views
from finetune.features import (
    CachedFeatures,
    FreshFeatures,
    Source,
    filled_store,
)
from finetune.form import Choice, Form, choose_form, lacks
from finetune.in_form import InForm, training_runner
from finetune.keeping import decide_cache, layout_of
from finetune.progress import Progress
from finetune.runtime import (
    WORTH_SHARING,
    available_cores,
    spare_memory_bytes,
)
from finetune.split import Split, split_model
from finetune.step import is_out_of_memory


@dataclass(frozen=True)
class Engine:
    """The two parts of a network and how they compute.

    Attributes:
        live: What the loop trains; it takes what a `Source` yields.
        prefix_choice, live_choice: Forms of arithmetic, and what was timed to find them.
        prefix_multiply_adds: Work of the prefix, for one image.
    """

    split: Split
    live: nn.Module
    computation: Computation
    prefix_choice: Choice
    live_choice: Choice
    prefix_multiply_adds: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.computation.device

    @property
    def prefix_seconds(self) -> float | None:
        """What the prefix takes for one image, where it was timed."""
        return self.prefix_choice.seconds.get(str(self.prefix_choice.form))

    @property
    def runtime(self) -> dict[str, str]:
        """The config's ``runtime`` section with the forms that were taken."""
        prefix, live = self.prefix_choice.form, self.live_choice.form
        return {
            "precision": prefix.precision,
            "memory_format": prefix.memory_format,
            "live_precision": live.precision,
            "live_memory_format": live.memory_format,
            "compile": "on" if live.compiled else "off",
        }


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
    cost: Cost | None = None,
) -> Engine:
    """Split a network whose ``requires_grad`` flags and modes are set for training.

    Args:
        model: On the device. Its live modules become part of the engine, and train in place.
        images: A few of them are decoded where forms of arithmetic have to be timed.
        frozen: Name and SHA-256 of every frozen tensor.
        skeleton: The same network on the meta device, where there is one already.
        cost: Of that skeleton, where it was measured already.
    """
    runtime = config.runtime
    for precision in sorted({runtime.precision, runtime.live_precision}):
        if lacks(device, precision):
            progress.warn(
                f"this {device.type} device has no {precision}: float32 is used, and figures "
                "may differ in the last digits"
            )
    skeleton = skeleton or copy.deepcopy(model).to("meta")
    split = split_model(model, crop=preprocessing.crop, skeleton=skeleton)
    identity = frozen_identity(split, frozen)
    plain = Computation(
        split.prefix, split.crossing, Form(), preprocessing, device, identity, split.widest
    )
    cores = available_cores() if split.prefix is not None and device.type == "cpu" else 1
    cost = cost or measure_cost(skeleton, crop=preprocessing.crop)

    network = _what_is_timed(model, preprocessing)
    # A GPU is given whole batches; of a few images it would mostly be the launches that are timed.
    rows = CPU_ROWS if device.type == "cpu" else config.data.batch_size

    @functools.cache
    def pixels(rows: int) -> Tensor:
        return _some_pixels(images, preprocessing, rows)

    prefix_choice, computation = Choice(Form(), {}), plain
    if split.prefix is not None:
        tiny = device.type == "cpu" and rows * cost.forward_frozen < 2 * WORTH_SHARING
        prefix_choice = _choose_for(
            rows,
            lambda rows: choose_form(
                _fixed(runtime, "precision", "memory_format") if tiny else runtime,
                lambda form: forward_runner(plain, pixels(rows))(form),
                device=device,
                images=rows * cores,  # the others compute as many at the same time
                key=f"{network} {identity}",
            ),
        )
        _say(progress, "the frozen part", prefix_choice)
        form = prefix_choice.form
        prefix = form.arrange(split.prefix, cast=True)
        computation = replace(plain, prefix=prefix, form=form)
    work = cost.forward_live
    # A head alone, for one: it takes no time in any form, and computes in float32.
    small = work * config.data.batch_size < WORTH_SHARING
    live_choice = _choose_for(
        rows,
        lambda rows: choose_form(
            live_runtime(
                _fixed(runtime, "live_precision", "live_memory_format") if small else runtime
            ),
            lambda form: training_runner(split.live, computation.features(pixels(rows)), device)(
                form
            ),
            device=device,
            images=rows,
            work=len(images) * config.train.epochs,
            key=f"live {network} {identity}",
        ),
    )
    _say(progress, "what trains", live_choice)
    live = InForm(split.live, live_choice.form, device, large=not small)
    return Engine(split, live, computation, prefix_choice, live_choice, cost.forward_frozen)


def _choose_for(rows: int, choose: Callable[[int], Choice]) -> Choice:
    """Timed with so many images; with few, where memory does not suffice for a batch: training
    computes it in smaller pieces then."""
    if rows > CPU_ROWS:
        try:
            return choose(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return choose(min(rows, CPU_ROWS))


def _what_is_timed(model: nn.Module, preprocessing: PreprocessingConfig) -> str:
    """Every shape, what of it trains, and the size of its input."""
    shapes = [(name, list(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    text = json.dumps([type(model).__name__, shapes, preprocessing.model_dump_json()])
    return hashlib.sha256(text.encode()).hexdigest()


def live_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """What of the config leaves the live part's form open: its own keys, then the common ones."""
    precision = runtime.live_precision
    layout = runtime.live_memory_format
    return runtime.model_copy(
        update={
            "precision": runtime.precision if precision == "auto" else precision,
            "memory_format": runtime.memory_format if layout == "auto" else layout,
        }
    )


def _fixed(runtime: RuntimeConfig, precision: str, memory_format: str) -> RuntimeConfig:
    """The section for a part that takes no time in any form: what these keys leave open is plain.

    Whether it takes no time is told by its work: a timing near the limit would tell it anew in
    every run.
    """
    plain = {precision: "float32", memory_format: "contiguous"}
    open_keys = {key: value for key, value in plain.items() if getattr(runtime, key) == "auto"}
    return runtime.model_copy(update=open_keys)


def _say(progress: Progress, what: str, choice: Choice) -> None:
    if choice.seconds:
        timed = ", ".join(f"{name} {1 / seconds:,.0f}" for name, seconds in choice.seconds.items())
        progress.say(f"form of {what}: {choice.form} (images/s: {timed})")


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
    return decide_cache(
        config.features,
        computation,
        rows_bytes,
        multiply_adds=engine.prefix_multiply_adds,
        progress=progress,
    )


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
    mixing: Mixing | None = None,
) -> Source:
    """The batches of one split, in the form that the live part takes.

    Args:
        config: Resolved: ``features.cache`` is not auto.
        mixing: What mixes a batch's images; its views are unbounded then.
    """
    assert mixing is None or views.count is None
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
            seconds=engine.prefix_seconds,
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
        keep_bytes=spare_memory_bytes() if config.train.epochs > 1 else 0,
    )
    return FreshFeatures(batches, engine.computation, mixing)
