"""Identification of a weights file as a torchvision entry, for its preprocessing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torchvision.transforms import InterpolationMode

from finetune.config.model import LARGEST_SIZE
from finetune.config.schema import GivenPreprocessing, PreprocessingConfig
from finetune.models.weight_files import About

_INTERPOLATION = {
    InterpolationMode.NEAREST: "nearest",
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
}


def preprocessing_of(entry: Any) -> PreprocessingConfig:
    """Return the preprocessing of a torchvision weights entry."""
    preset = entry.transforms()
    return PreprocessingConfig(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=_INTERPOLATION[preset.interpolation],  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Origin:
    """torchvision entry whose preprocessing is used for a weights file.

    Attributes:
        entry: The torchvision weights entry.
        by: Property of the file that identifies the entry; empty if the entry is assumed.
        others: Other possible entries, with different preprocessing.
    """

    entry: Any
    by: str
    others: tuple[str, ...] = ()


def origin_of(file: Path, facts: About | None, entries: dict[str, Any]) -> Origin:
    """Identify the entry of a weights file by its SHA-256, else its name, else its input size."""
    digits = {name: re.findall(r"[0-9a-f]{8,}", it.url)[-1] for name, it in entries.items()}
    size = None if facts is None else facts.image_size
    of_size = [
        it for it in entries.values() if size is None or preprocessing_of(it).crop == size
    ] or list(entries.values())
    for name, entry in entries.items():
        if facts is not None and facts.sha256.startswith(digits[name]):
            return Origin(entry, "its SHA-256")
    for entry in of_size:
        words = "|".join(map(re.escape, (digits[entry.name], entry.name)))
        if re.search(rf"(?<![0-9A-Za-z])(?:{words})(?![0-9A-Za-z])", file.name, re.IGNORECASE):
            return Origin(entry, "its name")
    first, *others = of_size
    unlike = [it.name for it in others if preprocessing_of(it) != preprocessing_of(first)]
    return Origin(first, "", tuple(unlike))


def exported_preprocessing(facts: About) -> GivenPreprocessing | None:
    """Return the preprocessing stored in a finetune export; None for other files."""
    try:
        return PreprocessingConfig.model_validate_json(facts.preprocessing or "")
    except ValidationError:
        return None


def as_trained(given: GivenPreprocessing, size: int) -> GivenPreprocessing:
    """Adapt preprocessing to another input size, with the resize size scaled in proportion."""
    if size == given.crop:
        return given
    resize = min(round(given.resize * size / given.crop), LARGEST_SIZE)
    return given.model_copy(update={"resize": resize, "crop": size})


def in_words(weights: str, origin: Origin, given: GivenPreprocessing, *, exported: bool) -> str:
    """Message about the preprocessing for a weights file, and why it was chosen."""
    steps = f"resize {given.resize}, crop {given.crop}, {given.interpolation}"
    if exported:
        return f"model.preprocessing: {steps}, as {weights} says"
    if origin.by:
        return (
            f"model.preprocessing: {weights} is {origin.entry.name} by {origin.by}: {steps}, as "
            "that entry has it"
        )
    others = f" rather than {' or '.join(origin.others)}" if origin.others else ""
    return (
        f"model.preprocessing: {steps} is assumed, that of {origin.entry.name}{others}: neither "
        f"name nor content of {weights} is torchvision's. If the weights were trained otherwise, "
        "set model.preprocessing to an entry's name, or to {resize, crop, mean, std, interpolation}"
    )
