"""``finetune show-batch``: draw the network's input images as a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from finetune.config.base import AUTO
from finetune.config.schema import AugmentConfig, Config, PreprocessingConfig
from finetune.config.stages import stage_at, stage_configs
from finetune.core.errors import ConfigError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import Images, TrainVal
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.views import Views
from finetune.freezing.plan import Plan, resolve_policy
from finetune.recipes.auto import plan_config
from finetune.recipes.named import expand_recipe
from finetune.report.contact_sheet import (
    BATCH_BY,
    Cell,
    Section,
    check_output,
    draw_sheet,
    save_sheet,
    scale_of,
    stand_ins,
)
from finetune.results.data import ShownBatch, ShownImage
from finetune.training.setup import find_data, levels_of, make_plans, some_sizes

Shown = tuple[Tensor, ShownImage]
"""Pixels before normalization, and the description of the image."""


def show_batch(
    config: Config,
    output: Path,
    *,
    epoch: int = 1,
    count: int = 12,
    reporter: Reporter | None = None,
) -> ShownBatch:
    """Write a contact sheet of the first training images of an epoch, and of validation images.

    Args:
        epoch: Index of the epoch, from 1; its order, views and mixing are those of training.
        count: Number of images per split.

    Raises:
        FinetuneError: the data, the config or the output file is invalid.
    """
    reporter = reporter or SilentReporter()
    _refuse_untrained(epoch, stage_configs(config))
    check_output(output, BATCH_BY)
    data, checked = find_data(config, reporter)
    if checked.worrying:
        reporter.warn(checked.verdict)
    reporter.status("drawing the sheet")
    names = data.train.class_names
    config, plan = _stage_of(epoch, config, data)
    augment = config.augment.with_values({"policy": resolve_policy(config, plan)})
    levels = levels_of(data, config.data, reporter)
    preprocessing = plan.spec.with_levels(levels).preprocessing
    training = list(_training(data.train, preprocessing, augment, config, epoch, count))
    validation = list(_validation(data.val, preprocessing, count))
    written = stand_ins(names)
    words = augmentation_in_words(augment)
    shown = f"{len(validation):,} of {len(data.val):,} images, evenly spaced."
    held_out = Section("Validation: no augmentation", shown, _cells(validation, written))
    sections = [held_out] if validation else []
    sheet = draw_sheet(
        [
            Section(
                f"Training, epoch {epoch}: {words}",
                f"{plan.spec.name} sees {preprocessing.crop} x {preprocessing.crop} pixels "
                f"(data.fit {preprocessing.fit}). The first {len(training):,} of "
                f"{len(data.train):,} images in the order of this epoch.",
                _cells(training, written),
            ),
            *sections,
        ]
    )
    save_sheet(sheet, output, BATCH_BY)
    return ShownBatch(
        file=str(output),
        width=sheet.width,
        height=sheet.height,
        model=plan.spec.name,
        input_size=preprocessing.crop,
        fit=preprocessing.fit,
        augmentation=words,
        epoch=epoch,
        pixels_each=scale_of(preprocessing.crop),
        num_train=len(data.train),
        num_val=len(data.val),
        training=tuple(image for _, image in training),
        validation=tuple(image for _, image in validation),
        stand_ins={shown: name for name, shown in written.items()},
    )


def _stage_of(epoch: int, config: Config, data: TrainVal) -> tuple[Config, Plan]:
    """Return the config and plan of the stage that contains an epoch."""
    number, names = len(data.train), data.train.class_names
    stages = stage_configs(expand_recipe(config, num_train=number))
    plans = make_plans(stages, len(names))
    planned = [
        plan_config(
            stage, plan, num_train=number, class_names=names, sizes=lambda: some_sizes(data.train)
        )
        for stage, plan in zip(stages, plans, strict=True)
    ]
    _refuse_untrained(epoch, planned)
    at = stage_at(planned, epoch)
    return planned[at], plans[at]


def _refuse_untrained(epoch: int, stages: Sequence[Config]) -> None:
    total = 0
    for stage in stages:
        if stage.train.epochs == AUTO:
            return
        total += stage.train.epochs
    if epoch > total:
        where = "train.epochs" if len(stages) == 1 else f"the sum of {len(stages)} stages"
        raise ConfigError(
            f"must be at most {total} ({where}), not {epoch}",
            kind="config.invalid_value",
            key="--epoch",
        )


def augmentation_in_words(augment: AugmentConfig) -> str:
    """Describe the random augmentation steps, in the order in which they are applied."""
    steps: list[str] = [augment.policy if augment.policy != "none" else ""]
    for key in ("color_jitter", "erasing", "mixup", "cutmix"):
        if value := getattr(augment, key):
            steps.append(f"{key.replace('_', ' ')} {value:g}")
    if augment.views:
        steps.append(f"{augment.views} views of each image")
    return ", ".join(step for step in steps if step) or "no augmentation"


def _training(
    images: Images,
    preprocessing: PreprocessingConfig,
    augment: AugmentConfig,
    config: Config,
    epoch: int,
    count: int,
) -> Iterator[Shown]:
    """Yield the first images of an epoch; whole batches are loaded because mixing needs them."""
    batches = Batches(
        PhotoDataset(images, preprocessing, Views.of_training(augment, seed=config.seed)),
        batch_size=config.data.batch_size,
        workers=0,
        device=torch.device("cpu"),
        shuffle=True,
    )
    mixing = Mixing.of(augment, num_classes=len(images.class_names), seed=config.seed)
    both = zip(batches.keys(epoch), batches.epoch(epoch), strict=True)
    for number, (keys, (pixels, labels)) in enumerate(both):
        if mixing is not None:
            pixels, labels = mixing(pixels, labels, epoch=epoch, number=number)
        for (index, _), one, label in zip(keys, pixels, labels, strict=True):
            if not count:
                return
            count -= 1
            yield one, ShownImage(str(images.paths[index]), _shares(label, images.class_names))


def _validation(images: Images, preprocessing: PreprocessingConfig, count: int) -> Iterator[Shown]:
    """Yield images evenly spaced over the split, which is sorted by class."""
    number = min(count, len(images))
    if not number:
        return
    some = images.subset([i * len(images) // number for i in range(number)])
    batches = Batches(
        PhotoDataset(some, preprocessing, Views.of("none")),
        batch_size=number,
        workers=0,
        device=torch.device("cpu"),
    )
    for pixels, labels in batches.epoch():
        for path, one, label in zip(some.paths, pixels, labels, strict=True):
            yield one, ShownImage(str(path), _shares(label, some.class_names))


def _shares(label: Tensor, names: Sequence[str]) -> dict[str, float]:
    if label.dim() == 0:
        return {names[int(label)]: 1.0}
    order = label.argsort(descending=True).tolist()
    return {names[i]: float(label[i]) for i in order if label[i] > 0}


def _cells(shown: Sequence[Shown], written: dict[str, str]) -> tuple[Cell, ...]:
    return tuple(Cell(image_of(pixels), _caption(what, written)) for pixels, what in shown)


def image_of(pixels: Tensor) -> Image.Image:
    """Convert pixels to an image without resampling; mixed (float) pixels are rounded."""
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _caption(image: ShownImage, written: dict[str, str]) -> tuple[str, ...]:
    names = [(written.get(name, name), share) for name, share in image.classes.items()]
    if len(names) == 1:
        return (names[0][0],)
    return tuple(f"{share:.0%} {name}" for name, share in names)
