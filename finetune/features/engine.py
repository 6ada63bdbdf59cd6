"""Engine: a network split into frozen prefix and trainable part, with their compute formats."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.config.resolved import PlannedConfig
from finetune.config.schema import PreprocessingConfig, RuntimeConfig
from finetune.core.cores import available_cores
from finetune.core.memory import is_out_of_memory, spare_memory_bytes
from finetune.core.reporter import Reporter
from finetune.core.threads import WORTH_SHARING
from finetune.data.images import Images
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.views import Views
from finetune.distributed.group import group
from finetune.distributed.ranks import ALONE, Ranks
from finetune.features.autocast_module import AutocastModule, training_runner
from finetune.features.both_views import BothViews
from finetune.features.cache_policy import decide_cache
from finetune.features.compute_format import ComputeFormat, FormatChoice, choose_format, lacks
from finetune.features.extractor import (
    CPU_ROWS,
    FeatureExtractor,
    Origin,
    forward_runner,
    frozen_identity,
)
from finetune.features.opening import layout_of
from finetune.features.rows import Wanted, feature_rows
from finetune.features.source import CachedFeatures, FeatureBatches, FreshFeatures
from finetune.freezing.flops import Cost, measure_cost
from finetune.freezing.graph_split import GraphSplit, split_model, with_head_input


@dataclass(frozen=True)
class Engine:
    """The two parts of a network with their compute formats.

    Attributes:
        split: Split of the network at the split point.
        trainable_part: Module that the loop trains; its inputs come from a `FeatureBatches`.
        extractor: Feature extractor that runs the frozen prefix.
        prefix_choice, trainable_choice: Compute formats with the timings of their candidates.
        prefix_multiply_adds: Multiply-adds of the prefix for one image.
    """

    split: GraphSplit
    trainable_part: AutocastModule
    extractor: FeatureExtractor
    prefix_choice: FormatChoice
    trainable_choice: FormatChoice
    prefix_multiply_adds: int

    @property
    def device(self) -> torch.device:
        """Device on which both parts run."""
        return self.extractor.device

    @property
    def prefix_seconds(self) -> float | None:
        """Seconds that the prefix takes for one image; None if it was not timed."""
        return self.prefix_choice.seconds.get(str(self.prefix_choice.form))

    def with_head_input(self, head: str) -> nn.Module:
        """Return the trainable part in eval mode, whose output ends with the input of the head.

        Its output for each image is that of `finetune.freezing.graph_split.with_head_input`, and
        its logits are those of the trainable part, bit for bit.
        """
        part = with_head_input(self.split.trainable_part.eval(), head)
        form, large = self.trainable_choice.form, self.trainable_part.in_pieces
        return AutocastModule(part, form, self.device, large=large).eval()

    @property
    def runtime(self) -> dict[str, str]:
        """Values of the config's ``runtime`` section for the chosen compute formats."""
        prefix, trainable_part = self.prefix_choice.form, self.trainable_choice.form
        return {
            "precision": prefix.precision,
            "memory_format": prefix.memory_format,
            "live_precision": trainable_part.precision,
            "live_memory_format": trainable_part.memory_format,
            "compile": "on" if trainable_part.compiled else "off",
        }


@dataclass(frozen=True)
class Network:
    """Network whose ``requires_grad`` flags and modes are set for training.

    Attributes:
        name: Name of the torchvision builder.
        model: Network on the device. Its trainable modules become part of the engine, and are
            trained in place.
        frozen: Name and SHA-256 of every frozen tensor.
        skeleton: The same network on the meta device; None creates it.
        cost: Cost of the skeleton; None measures it.
    """

    name: str
    model: nn.Module
    preprocessing: PreprocessingConfig
    frozen: Mapping[str, str]
    skeleton: nn.Module | None = None
    cost: Cost | None = None


def build_engine(
    network: Network,
    config: PlannedConfig,
    images: Images,
    *,
    device: torch.device,
    reporter: Reporter,
) -> Engine:
    """Split a network into frozen prefix and trainable part, and choose their compute formats.

    Args:
        images: Images of which a few are decoded if compute formats have to be timed.
    """
    model, preprocessing = network.model, network.preprocessing
    runtime = config.runtime
    for precision in sorted({runtime.precision, runtime.live_precision}):
        if lacks(device, precision):
            reporter.warn(
                f"this {device.type} device does not support {precision}: using float32, so "
                "results may differ in the last digits"
            )
    skeleton = network.skeleton or copy.deepcopy(model).to("meta")
    split = split_model(model, crop=preprocessing.crop, skeleton=skeleton)
    identity = frozen_identity(split.prefix, split.reads, network.frozen)
    plain = FeatureExtractor(
        prefix=split.prefix,
        crossing=split.crossing,
        form=ComputeFormat(),
        preprocessing=preprocessing,
        device=device,
        identity=identity,
        widest=split.widest,
        network=network.name,
        cut=split.last or "",
        names=split.point.names if split.point else (),
        origin=Origin(weakref.ref(model), split.point, network.frozen) if split.point else None,
    )
    cores = available_cores() if split.prefix is not None and device.type == "cpu" else 1
    cost = network.cost or measure_cost(skeleton, crop=preprocessing.crop)
    described = preprocessing.model_dump_json()
    # A GPU is timed with whole batches; with few images kernel launches would dominate.
    rows = CPU_ROWS if device.type == "cpu" else config.data.batch_size

    @functools.cache
    def pixels(rows: int) -> Tensor:
        return _some_pixels(images, preprocessing, rows)

    prefix_choice, extractor = FormatChoice(ComputeFormat(), {}), plain
    if split.prefix is not None:
        tiny = device.type == "cpu" and rows * cost.forward_frozen < 2 * WORTH_SHARING
        prefix_choice = _choose_for(
            rows,
            lambda rows: choose_format(
                _fixed(runtime, "precision", "memory_format") if tiny else runtime,
                lambda form: forward_runner(plain, pixels(rows))(form),
                device=device,
                images=rows * cores,  # every core processes this many at the same time
                is_frozen=True,
                # Without the head, so that features are the same with another one.
                key=f"{described} {identity}",
            ),
        )
        _say(reporter, "frozen part", prefix_choice)
        form = prefix_choice.form
        prefix = form.arrange(split.prefix, cast=True)
        extractor = replace(plain, prefix=prefix, form=form)
    work = cost.forward_trainable
    # A small part, such as a lone head, takes no time in any format and computes in float32.
    small = work * config.data.batch_size < WORTH_SHARING
    trainable_choice = _choose_for(
        rows,
        lambda rows: choose_format(
            trainable_runtime(
                _fixed(runtime, "live_precision", "live_memory_format") if small else runtime
            ),
            lambda form: training_runner(
                split.trainable_part, extractor.features(pixels(rows)), device
            )(form),
            device=device,
            images=rows,
            work=len(images) * config.train.epochs,
            key=f"live {_what_is_timed(model, preprocessing)} {identity}",
        ),
    )
    _say(reporter, "trainable part", trainable_choice)
    trainable_part = AutocastModule(
        split.trainable_part, trainable_choice.form, device, large=not small
    )
    return Engine(
        split, trainable_part, extractor, prefix_choice, trainable_choice, cost.forward_frozen
    )


def _choose_for(rows: int, choose: Callable[[int], FormatChoice]) -> FormatChoice:
    """Choose a format with ``rows`` images, or with few if memory does not suffice for these.

    Training uses micro-batches in that case. Of several processes, the first one chooses.
    """
    return group().first(lambda: _choose(rows, choose), FormatChoice)


def _choose(rows: int, choose: Callable[[int], FormatChoice]) -> FormatChoice:
    if rows > CPU_ROWS:
        try:
            return choose(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return choose(min(rows, CPU_ROWS))


def _what_is_timed(model: nn.Module, preprocessing: PreprocessingConfig) -> str:
    """Return a digest of the network's shapes, its trainable parameters and its preprocessing."""
    shapes = [(name, list(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    text = json.dumps([type(model).__name__, shapes, preprocessing.model_dump_json()])
    return hashlib.sha256(text.encode()).hexdigest()


def trainable_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """Return the ``runtime`` section for the trainable part.

    Its own keys are used where they are not ``auto``, else the common ones.
    """
    precision = runtime.live_precision
    if precision == "auto" and runtime.precision == "float16":
        precision = "float32"  # gradients would lose their small values
    layout = runtime.live_memory_format
    return runtime.model_copy(
        update={
            "precision": runtime.precision if precision == "auto" else precision,
            "memory_format": runtime.memory_format if layout == "auto" else layout,
        }
    )


def _fixed(runtime: RuntimeConfig, precision: str, memory_format: str) -> RuntimeConfig:
    """Return the section for a part too small to time: its ``auto`` keys become the plain format.

    A part is too small by its multiply-adds, because a timing near the limit could decide
    differently in every run.
    """
    plain = {precision: "float32", memory_format: "contiguous"}
    open_keys = {key: value for key, value in plain.items() if getattr(runtime, key) == "auto"}
    return runtime.model_copy(update=open_keys)


def _say(reporter: Reporter, what: str, choice: FormatChoice) -> None:
    if choice.seconds:
        timed = ", ".join(f"{name} {1 / seconds:,.0f}" for name, seconds in choice.seconds.items())
        fastest = choice.seconds.get(str(choice.form))
        speed = "" if fastest is None else f", {1 / fastest:,.0f} images/s"
        reporter.detail(f"fastest here, {what}: {choice.form}{speed} (images/s: {timed})")


def _some_pixels(images: Images, preprocessing: PreprocessingConfig, number: int) -> Tensor:
    """Return a batch for timing, sampled evenly from the images; blank if none can be decoded."""
    dataset = PhotoDataset(images, preprocessing, Views.of("none"))
    count = min(number, len(images))
    samples = dataset.__getitems__([(i * len(images) // count, 0) for i in range(count)])
    pixels = [sample[0] for sample in samples if isinstance(sample, tuple)]
    blank = torch.zeros(3, preprocessing.crop, preprocessing.crop, dtype=torch.uint8)
    chosen = pixels or [blank]
    return torch.stack([chosen[i % len(chosen)] for i in range(number)])


def resolve_cache(
    config: PlannedConfig,
    engine: Engine,
    num_train: int,
    num_val: int,
    views: Views,
    reporter: Reporter,
) -> str:
    """Resolve ``features.cache`` for a run."""
    if engine.split.prefix is None:
        return "off"
    extractor = engine.extractor
    rows = num_val * config.model.num_views + num_train * (views.count or 0)
    return decide_cache(
        config.features,
        extractor,
        rows * layout_of(extractor).num_bytes,
        multiply_adds=engine.prefix_multiply_adds,
        reporter=reporter,
    )


@dataclass(frozen=True)
class Split:
    """Images of one split, and how they are passed over.

    Attributes:
        what: Name of the split in messages.
        mixing: Mixup or cutmix applied to each batch; requires an unbounded number of views.
        both_views: Whether each batch has the features of the images, then those of their mirror
            images, instead of ``views``.
    """

    images: Images
    views: Views
    shuffle: bool
    what: str
    mixing: Mixing | None = None
    both_views: bool = False


def make_source(
    engine: Engine,
    config: PlannedConfig,
    split: Split,
    *,
    workers: int,
    reporter: Reporter,
    ranks: Ranks = ALONE,
) -> FeatureBatches:
    """Return the batches of one split, as inputs of the trainable part.

    Args:
        config: Resolved config, in which ``features.cache`` is not auto.
        ranks: Place of this process among those that share the batches.
    """
    images, views = split.images, Views.of("flip") if split.both_views else split.views
    assert split.mixing is None or views.count is None
    batch_size = config.data.batch_size
    if config.features.cache != "off" and views.count is not None and engine.split.prefix:
        rows = feature_rows(
            engine.extractor,
            config.features,
            Wanted(images, views, split.what, engine.prefix_seconds),
            workers=workers,
            reporter=reporter,
        ).on(engine.device)

        def cached(views: Views) -> CachedFeatures:
            return CachedFeatures(
                rows,
                images,
                batch_size=batch_size,
                views=views,
                shuffle=split.shuffle,
                device=engine.device,
                ranks=ranks,
            )

        if split.both_views:
            return BothViews(*(cached(replace(views, only=view)) for view in (0, 1)))
        return cached(views)
    # In the next epoch, another worker process may be asked for an image that one has kept.
    keeps = config.train.epochs > 1 and not workers
    dataset = PhotoDataset(
        images,
        engine.extractor.preprocessing,
        split.views,
        keep_bytes=spare_memory_bytes() if keeps else 0,
    )
    batches = Batches(
        dataset,
        batch_size=batch_size,
        workers=workers,
        device=engine.device,
        shuffle=split.shuffle,
        ranks=ranks,
        previous_row=split.mixing is not None,
    )
    return FreshFeatures(batches, engine.extractor, split.mixing, both_views=split.both_views)
