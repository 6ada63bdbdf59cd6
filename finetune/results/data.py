"""Results of ``show-batch``, ``init``, ``sample`` and ``next``."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.results.features import FeatureCounts


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


@dataclass(frozen=True)
class NextPhoto:
    """Photo to label.

    Attributes:
        predicted, probability: Most probable class, and its probability.
        runner_up, runner_up_probability: Second most probable class, and its probability.
        similar: Number of uncertain photos that are most like this one, itself included.
    """

    path: str
    predicted: str
    probability: float
    runner_up: str
    runner_up_probability: float
    similar: int

    @property
    def margin(self) -> float:
        """Difference between the two probabilities; the smaller, the less certain."""
        return self.probability - self.runner_up_probability

    @property
    def reason(self) -> str:
        """Reason for the choice, as a phrase."""
        if self.similar == 1:
            return f"{self.predicted} or {self.runner_up}"
        return f"{self.predicted} or {self.runner_up}; most like {self.similar - 1:,} other photos"


@dataclass(frozen=True)
class NextPhotos:
    """Result of ``next``: the photos to label first.

    Attributes:
        num_pool: Number of images of the pool that can be read.
        num_known: Number of images of the pool that are in the data of the run, left out.
        near_known: Number of images left out as near-copies of images of the run.
        near_each_other: Number of images left out as near-copies of other images of the pool.
        photos: Photos to label, the least certain first.
        unreadable: Path and reason of each image that cannot be read.
        files: Paths of the CSV file and of the contact sheet.
        stand_ins: Class name by the name that stands for it on the contact sheet.
        features: Rows of features computed and reused; None if the run keeps none.
    """

    checkpoint: str
    model: str
    num_pool: int
    num_known: int
    near_known: int
    near_each_other: int
    photos: tuple[NextPhoto, ...]
    unreadable: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    stand_ins: dict[str, str]
    elapsed_s: float
    features: FeatureCounts | None
