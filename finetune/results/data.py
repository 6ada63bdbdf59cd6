"""Results of ``show-batch``, ``init`` and ``sample``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownImage:
    """Image of a contact sheet.

    Attributes:
        classes: Share of each class in the label; two classes if images were mixed, else one.
    """

    path: str
    classes: dict[str, float]


@dataclass(frozen=True)
class ShownBatch:
    """Contact sheet that was written.

    Attributes:
        augmentation: Description of the augmentation of training images.
        pixels_each: Scale: sheet pixels per pixel of the network's input, along one side.
        stand_ins: Replacement names for classes whose names the sheet's font cannot show.
    """

    file: str
    width: int
    height: int
    model: str
    input_size: int
    fit: str
    augmentation: str
    epoch: int
    pixels_each: float
    num_train: int
    num_val: int
    training: tuple[ShownImage, ...]
    validation: tuple[ShownImage, ...]
    stand_ins: dict[str, str]


@dataclass(frozen=True)
class StartingConfig:
    """Starting config for a data set.

    Attributes:
        file: Path of the written config; None if no file was written.
        budget: Time that training may take, as in ``train.budget``.
    """

    file: str | None
    config: str
    model: str
    budget: str
    num_train: int
    num_val: int
    num_classes: int


@dataclass(frozen=True)
class SampleSet:
    """Sample data set that was drawn."""

    folder: str
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    next: tuple[str, ...]
