"""Results of ``learning-curve``."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.results.features import FeatureCounts


@dataclass(frozen=True)
class PowerLaw:
    """Error by the number n of training photos: ``floor + scale * n ** -exponent``.

    Attributes:
        floor: Error that remains with any number of photos; 0 if the measured errors do not support
            a larger one.
    """

    floor: float
    scale: float
    exponent: float

    def error_at(self, num_photos: float) -> float:
        """Return the error with this many training photos."""
        return float(self.floor + self.scale * num_photos**-self.exponent)


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with a part of the training photos.

    Attributes:
        top1: Mean over the draws.
        low, high: Confidence interval of ``top1``.
        draws: Accuracy of each draw.
    """

    num_photos: int
    top1: float
    low: float
    high: float
    draws: tuple[float, ...]


@dataclass(frozen=True)
class Projected:
    """Accuracy that is expected with more training photos.

    Attributes:
        low, high: Prediction interval of ``top1`` on other photos of the same kind.
        gain: Difference from the accuracy with all training photos.
        gain_low, gain_high: Prediction interval of ``gain`` on the same validation photos.
    """

    num_photos: int
    top1: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class ClassProjection:
    """Accuracy of one class, now and as projected.

    Attributes:
        num_train, num_val: Numbers of photos of the class.
        top1: Share of its validation photos that are classified correctly with all training photos.
    """

    name: str
    num_train: int
    num_val: int
    top1: float
    projected: Projected


@dataclass(frozen=True)
class LearningCurve:
    """Result of ``learning-curve``: accuracy by the number of training photos.

    Attributes:
        num_train, num_val: Numbers of training photos, and of validation photos.
        num_draws: Number of draws of each size but the last, which is all training photos.
        penalty: L2 penalty of the heads.
        points: Accuracy by the number of photos, the smallest first.
        law: Power law fitted to the errors.
        projected: Accuracy with twice the training photos.
        per_class: Classes with validation photos, those with the largest gain first.
        picture: Path of the plot; None if none was drawn.
        features: Rows of features computed and reused; None if none are kept.
    """

    model: str
    weights: str
    num_classes: int
    num_train: int
    num_val: int
    num_draws: int
    penalty: float
    points: tuple[CurvePoint, ...]
    law: PowerLaw
    projected: Projected
    per_class: tuple[ClassProjection, ...]
    picture: str | None
    elapsed_s: float
    features: FeatureCounts | None

    @property
    def now(self) -> CurvePoint:
        """Return the accuracy with all training photos."""
        return self.points[-1]
