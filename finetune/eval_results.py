"""What ``eval``, ``compare``, ``predict`` and ``export`` found out, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """Of 95 %: where a figure would lie on other images of the same kind."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """One class of an evaluation.

    Attributes:
        top1: Share of its images that were recognised: its recall, and its accuracy. None where the
            split holds no image of it.
        precision: Share of the images called so that are of it; None where none was called so.
        f1: Harmonic mean of the two; None where the class has no image and was never named.
    """

    name: str
    num_images: int
    num_correct: int
    num_predicted: int
    top1: float | None
    precision: float | None
    f1: float | None
    interval: Interval | None
    """Of ``top1``, Wilson's."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were taken for another, with their share of the class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: how sure they were, and how often right."""

    low: float
    high: float
    count: int
    probability: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether a probability of 80 % is right in 80 of 100 cases.

    Attributes:
        error: Expected calibration error (Naeini et al. 2015): the mean distance between
            probability and accuracy over the bins, weighted by their images.
        temperature: What logits were divided by (Guo et al. 2017); 1 where nothing was fitted.
        error_before: Where a temperature is in use: the error without it.
        loss: Cross-entropy of the probabilities in use; with a temperature it differs from the
            loss that training recorded.
        fitted: The temperature was fitted on these very images, now or before.
    """

    error: float
    bins: tuple[Bin, ...]
    temperature: float
    error_before: float | None
    loss: float
    fitted: bool


@dataclass(frozen=True)
class Macro:
    """Means over the classes that have images or were named, each class counting the same."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class EvalResult:
    """Figures of a checkpoint on one split.

    Attributes:
        loss: Cross-entropy without any temperature, as training recorded it.
        auroc: Mean over classes of the area under the ROC curve, each against the rest; None
            where it was left out for size, or no class has both sides.
        intervals: By figure, as ``top1``; a figure without one was too large to resample, or
            showed no spread, or all images are of one group.
        interval_method: How they were found, and what has none, in words.
        confused: Every pair that was confused, the most frequent first.
        confusion: True classes down, predicted ones across; None above 200 classes.
        images_per_s: From files to figures; from stored features, where an earlier run had
            computed them.
        ignored: Images of classes that training does not know, left out with --ignore-unknown.
        files: What was written.
    """

    checkpoint: str
    model: str
    data: str
    split: str | None
    num_images: int
    top1: float
    balanced_accuracy: float
    top5: float | None
    loss: float
    macro: Macro
    auroc: float | None
    intervals: dict[str, Interval]
    interval_method: str
    calibration: Calibration
    per_class: tuple[ClassScore, ...]
    confused: tuple[ConfusedPair, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    images_per_s: float
    features_from_earlier_run: bool
    ignored: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunFigures:
    """One run in a comparison."""

    run: str
    checkpoint: str
    model: str
    data: str
    num_images: int
    top1: float
    balanced_accuracy: float
    loss: float
    macro_f1: float
    calibration_error: float
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class PairedTest:
    """Two runs on the images that both were evaluated on.

    Attributes:
        only_first: Images that the first alone recognised.
        p_value: McNemar's exact test: how often runs that are equally good would differ at least
            so unevenly.
        adjusted: The same after Holm's correction for the number of pairs.
        different: ``adjusted`` is below 0.05.
        sentence: The same in words.
    """

    first: str
    second: str
    num_images: int
    only_first: int
    only_second: int
    p_value: float | None
    adjusted: float | None
    different: bool
    sentence: str


@dataclass(frozen=True)
class ConfigRow:
    """A key of the config that is not the same in all runs; None where a run lacks it."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        differing: Only what differs.
        plot: The learning curves in one picture, where it was asked for.
    """

    runs: tuple[RunFigures, ...]
    differing: tuple[ConfigRow, ...]
    tests: tuple[PairedTest, ...]
    interval_method: str
    plot: str | None


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        path: As it was given; None for an image that came without one.
        label: The class of the highest probability.
        probability: Of this class, after the checkpoint's temperature where it has one.
        unsure: ``probability`` is below the threshold that was asked for.
        top: The best classes with their probabilities, the best first.
    """

    path: str | None
    label: str
    probability: float
    unsure: bool
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class PredictSummary:
    """The end of ``predict``; the predictions themselves were streamed."""

    checkpoint: str
    model: str
    num_images: int
    num_unsure: int
    unreadable: tuple[tuple[str, str], ...]
    elapsed_s: float
    images_per_s: float


@dataclass(frozen=True)
class Agreement:
    """An export beside ``eval`` on the same real images; ``precision`` is what ``eval`` computed
    in."""

    num_images: int
    runtime: str
    precision: str
    max_difference: float
    tolerance: float
    same_top1: int
    shapes: tuple[tuple[int, int], ...]
    """Height and width of some of the images that it was fed."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how it agrees with ``eval``.

    Attributes:
        in_float32: Where ``eval`` computes in bfloat16: the same beside its float32, which shows
            what is owed to the export alone.
    """

    checkpoint: str
    model: str
    format: str
    preprocessing: bool
    dynamic: tuple[str, ...]
    files: tuple[str, ...]
    num_bytes: int
    agreement: Agreement
    in_float32: Agreement | None
    elapsed_s: float


@dataclass(frozen=True)
class PageResult:
    """The page, or the pictures, that ``report`` wrote."""

    run: str
    files: tuple[str, ...]
    num_bytes: int
    elapsed_s: float
