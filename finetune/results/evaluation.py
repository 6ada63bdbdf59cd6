"""Results of ``eval``, ``compare``, ``predict``, ``export`` and ``report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.results.caveats import Caveat
from finetune.results.features import FeatureCounts


@dataclass(frozen=True)
class Interval:
    """95 % confidence interval of a metric."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """Metrics of one class.

    Attributes:
        top1: Recall, the fraction of the class's images predicted correctly; None if the split has
            no image of the class.
        precision: Fraction of the predictions of this class that are correct; None if the class was
            never predicted.
        f1: Harmonic mean of recall and precision; None if the class has no image and was never
            predicted.
    """

    name: str
    num_images: int
    num_correct: int
    num_predicted: int
    top1: float | None
    precision: float | None
    f1: float | None
    interval: Interval | None
    """Wilson interval of ``top1``."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class ``true`` predicted as ``predicted``, with their share of the true class."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Bin:
    """Bin of the reliability diagram: mean probability and accuracy of its predictions."""

    low: float
    high: float
    count: int
    probability: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of the predicted probabilities.

    Attributes:
        error: Expected calibration error (Naeini et al. 2015): the mean distance between
            probability and accuracy over the bins, weighted by their number of images.
        temperature: Divisor of the logits (Guo et al. 2017); 1 if none was fitted.
        error_before: Calibration error without the temperature; None if no temperature is used.
        loss: Cross-entropy of the calibrated probabilities; with a temperature it differs from the
            loss recorded in training.
        fitted: Whether the temperature was fitted on these same images, now or before.
    """

    error: float
    bins: tuple[Bin, ...]
    temperature: float
    error_before: float | None
    loss: float
    fitted: bool


@dataclass(frozen=True)
class Macro:
    """Unweighted means over the classes that have images or were predicted."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class EvalResult:
    """Metrics of a checkpoint on one split.

    Attributes:
        loss: Cross-entropy without temperature, as recorded in training.
        auroc: One-vs-rest area under the ROC curve, averaged over classes; None if the data is too
            large, or no class has both positive and negative images.
        intervals: Confidence interval by metric name, such as ``top1``. Missing for metrics too
            large to resample or without spread, and if all images are in one group.
        interval_method: Description of the method, and of the metrics without an interval.
        confused: Confused pairs, most frequent first.
        confusion: Confusion matrix, true classes in rows; None above 200 classes.
        images_per_s: Speed from files to metrics; from cached features, if an earlier run
            computed them.
        features: Rows of features computed and reused; None if the run keeps none.
        ignored: Number of images of unknown classes, left out with ``--ignore-unknown``.
        files: Paths of the files written.
        next: Commands that show the same evaluation in other ways.
        caveats: Facts that limit what the metrics say about new photos, the most serious first.
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
    features: FeatureCounts | None
    ignored: int
    files: tuple[str, ...]
    next: tuple[str, ...] = ()
    caveats: tuple[Caveat, ...] = ()


@dataclass(frozen=True)
class RunFigures:
    """Metrics of one run in a comparison."""

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
    features: FeatureCounts | None
    caveats: tuple[Caveat, ...] = ()


@dataclass(frozen=True)
class PairedTest:
    """McNemar's exact test of two runs on the images that both were evaluated on.

    Attributes:
        only_first: Number of images that only the first run classified correctly.
        only_second: Number of images that only the second run classified correctly.
        p_value: Probability of a difference at least this uneven between equally good runs.
        adjusted: p-value after Holm's correction for the number of pairs.
        different: Whether ``adjusted`` is below 0.05.
        sentence: Result as a sentence.
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
    """Config key whose value differs between runs; the value is None for runs without the key."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs.

    Attributes:
        differing: Config keys whose values differ.
        plot: Path of the plot of the learning curves; None if none was requested.
    """

    runs: tuple[RunFigures, ...]
    differing: tuple[ConfigRow, ...]
    tests: tuple[PairedTest, ...]
    interval_method: str
    plot: str | None


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        path: Path as given; None for an image without a path.
        label: Class with the highest probability.
        probability: Probability of ``label``, calibrated if the checkpoint has a temperature.
        unsure: Whether ``probability`` is below the threshold.
        top: Most probable classes and their probabilities, in descending order.
        distance: Distance to the training photos, 1 at the limit; None if the checkpoint has none.
        unlike: Whether the image is unlike the training photos: its distance is above 1.
        prediction_set: Classes of the prediction set, most probable first; None if no coverage was
            asked for.
    """

    path: str | None
    label: str
    probability: float
    unsure: bool
    top: tuple[tuple[str, float], ...]
    distance: float | None = None
    unlike: bool | None = None
    prediction_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Unreadable:
    """Image that cannot be decoded, with the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class SortedInto:
    """Folders that ``predict --sort-into`` has made.

    Attributes:
        folder: Folder that contains the others.
        counts: Number of images in each of the others.
        renamed: Class name by the folder that stands for it, where they differ.
        links: Whether the images are symbolic links; else they are copies.
    """

    folder: str
    counts: dict[str, int]
    renamed: dict[str, str]
    links: bool


@dataclass(frozen=True)
class PredictSummary:
    """Summary of ``predict``; the predictions themselves are streamed.

    Attributes:
        sorted_into: Folders with the images by class; None without ``--sort-into``.
        num_unlike: Number of images unlike the training photos; None if no limit is known.
        false_alarms: Share of photos like the training photos that are marked as unlike them.
        calibration_images: Number of validation photos that the limits were set on; None if the
            checkpoint has no limits.
        coverage: Coverage of the prediction sets; None without them.
        mean_set_size: Mean number of classes in a prediction set.
    """

    checkpoint: str
    model: str
    num_images: int
    num_unsure: int
    unreadable: tuple[tuple[str, str], ...]
    elapsed_s: float
    images_per_s: float
    features: FeatureCounts | None
    sorted_into: SortedInto | None = None
    num_unlike: int | None = None
    false_alarms: float | None = None
    calibration_images: int | None = None
    coverage: float | None = None
    mean_set_size: float | None = None


@dataclass(frozen=True)
class EmbedResult:
    """Embeddings written by ``embed``.

    Attributes:
        checkpoint: Run or checkpoint; None if the network has its pretrained weights.
        num_labelled: Number of images whose class is known.
        dimensions: Number of values of an embedding.
        unreadable: Path and reason of each image that cannot be read; the files do not hold it.
    """

    checkpoint: str | None
    model: str
    num_images: int
    num_labelled: int
    dimensions: int
    unreadable: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    num_bytes: int
    elapsed_s: float
    images_per_s: float
    features: FeatureCounts | None


@dataclass(frozen=True)
class Agreement:
    """Comparison of an export with ``eval`` on the same real images; ``precision`` is that of
    ``eval``.

    Attributes:
        max_distance_difference: Largest difference of a distance to the training photos; None if
            the export gives none.
        same_unlike: Number of images that both mark, or both do not, as unlike them.
    """

    num_images: int
    runtime: str
    precision: str
    max_difference: float
    tolerance: float
    same_top1: int
    shapes: tuple[tuple[int, int], ...]
    """Height and width of some of the images passed to the export."""
    max_distance_difference: float | None = None
    same_unlike: int | None = None


@dataclass(frozen=True)
class ExportResult:
    """Files of an export, and their agreement with ``eval``.

    Attributes:
        agreement: Comparison with ``eval`` in its own precision.
        in_float32: Comparison with ``eval`` in float32, which shows the error of the export alone;
            None unless ``eval`` computes in bfloat16.
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
    """HTML page or PNG files written by ``report``.

    Attributes:
        map_method: Method of the page's map of embeddings, pca or umap; None without a map.
    """

    run: str
    files: tuple[str, ...]
    num_bytes: int
    elapsed_s: float
    features: FeatureCounts | None
    map_method: str | None = None
