"""Results of ``suspects``; `finetune.report` renders them."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.results.evaluation import Interval
from finetune.results.features import FeatureCounts


@dataclass(frozen=True)
class Neighbour:
    """Image near another one in feature space, with the cosine similarity of the two."""

    path: str
    split: str
    label: str
    similarity: float


@dataclass(frozen=True)
class SuspectedLabel:
    """Image whose label is probably wrong.

    Attributes:
        split: train or val.
        given: Its label in the data.
        suggested: The most probable class.
        score: Probability that the label is wrong, by which the list is ordered; 1 if an image with
            the same pixels has the suggested label.
        probability_given: Probability of ``given``, by heads and neighbours that do not know the
            image's label.
        probability_suggested: Probability of ``suggested``, likewise.
        neighbours: The three nearest images in feature space, nearest first.
    """

    path: str
    split: str
    given: str
    suggested: str
    score: float
    probability_given: float
    probability_suggested: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Leak:
    """Validation image, and the training image that is nearest to it or looks like it.

    Attributes:
        similarity: Cosine similarity of their features.
        found_by: features, hash (the perceptual hash of ``check-data``) or both.
    """

    val: str
    train: str
    similarity: float
    val_label: str
    train_label: str
    found_by: str


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on some validation images; None without images."""

    num_images: int
    num_correct: int
    top1: float | None
    interval: Interval | None
    """Wilson interval of ``top1``."""


@dataclass(frozen=True)
class LeakAccuracy:
    """Validation accuracy of a head that is fitted to the training images.

    Attributes:
        every: On all validation images.
        leaked: On those in ``leaks`` alone.
        without: On the others.
    """

    every: Accuracy
    leaked: Accuracy
    without: Accuracy


@dataclass(frozen=True)
class Outlier:
    """Image unlike others.

    Attributes:
        kind: class (unlike the other images of its class) or all (unlike all images).
        similarity: Mean cosine similarity to the nearest images: of its class, or of all.
        limit: Similarity below which an image is an outlier.
        nearest: Nearest image of any class.
    """

    path: str
    split: str
    label: str
    kind: str
    similarity: float
    limit: float
    nearest: Neighbour


@dataclass(frozen=True)
class QualityFinding:
    """Image whose pixels are of poor quality.

    Attributes:
        kind: dark, over_exposed, blurred or odd_size.
        value: What was measured, in words.
    """

    path: str
    split: str
    label: str
    kind: str
    value: str


@dataclass(frozen=True)
class SuspectsReport:
    """Images that a person should look at: labels, leaks, outliers and quality.

    Attributes:
        source: Config file or run directory.
        data: Name of the data, as in ``data.root``.
        base: Folder that the paths of images are relative to.
        model: Network whose features are compared, with its pretrained weights.
        classes: All class names, in the order of the labels.
        num_train: Number of training images.
        num_val: Number of validation images.
        num_folds: Number of folds of the out-of-fold probabilities.
        accuracy: Share of the labels of training and validation images that are the most probable
            class.
        num_not_judged: Number of images that no fold holds out, because their class has no other
            image or group; their labels are not judged.
        labels: Suspected labels, the surest first.
        leaks: Validation images with a near copy in training, the most similar first.
        leak_accuracy: How much of the validation accuracy rests on leaks; None without validation
            images.
        outliers: Outliers, the least similar first.
        quality: Findings on pixels, in the order of the kinds.
        features: Rows of features computed and reused; None if none are kept.
        decided: Path, action and class of each row of ``data.corrections``.
        files: Paths of the files written.
        next: Commands that go on from here.
    """

    source: str
    data: str
    base: str
    model: str
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    num_folds: int
    accuracy: float
    num_not_judged: int
    labels: tuple[SuspectedLabel, ...]
    leaks: tuple[Leak, ...]
    leak_accuracy: LeakAccuracy | None
    outliers: tuple[Outlier, ...]
    quality: tuple[QualityFinding, ...]
    features: FeatureCounts | None
    elapsed_s: float
    decided: tuple[tuple[str, str, str], ...] = ()
    files: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
