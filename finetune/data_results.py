"""What the commands that look at data found out, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownImage:
    """A picture of a contact sheet.

    Attributes:
        classes: Share of each class: one, or two where images were mixed.
    """

    path: str
    classes: dict[str, float]


@dataclass(frozen=True)
class ShownBatch:
    """A contact sheet that was written.

    Attributes:
        augmentation: What training images went through, in words.
        pixels_each: Pixels of the sheet along one pixel of the network's input.
        stand_ins: What the sheet calls a class whose name its font cannot write.
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
    """A first config for some data.

    Attributes:
        file: Where it was written; None where it was not.
        trains: head, block or everything.
    """

    file: str | None
    config: str
    model: str
    trains: str
    epochs: int
    num_train: int
    num_val: int
    num_classes: int
