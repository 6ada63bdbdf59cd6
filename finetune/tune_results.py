"""What ``tune`` and ``lr-find`` found out, as plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.results import TrainSummary


@dataclass(frozen=True)
class Settings:
    """What a trial varies; one of them is a head's whole recipe beside the schedule."""

    optimizer: str
    lr: float
    weight_decay: float
    label_smoothing: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class FoldScore:
    """One fold's held-out images after the last epoch; the loss is no number where it diverged."""

    num_images: int
    top1: float
    balanced_accuracy: float
    macro_f1: float
    loss: float


@dataclass(frozen=True)
class Trial:
    """Settings, and how they did.

    Attributes:
        number: From 0, the config's own settings.
        model, weights: The backbone.
        folds: Figures of each fold; none where any fold diverged.
        top1, balanced_accuracy, macro_f1, loss: Means over the folds; None where it diverged.
        spread: Standard deviation over the folds of what was chosen by; None for a single fold.
    """

    number: int
    model: str
    weights: str
    settings: Settings
    folds: tuple[FoldScore, ...]
    top1: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    loss: float | None
    spread: float | None

    @classmethod
    def of(
        cls,
        number: int,
        model: str,
        weights: str,
        settings: Settings,
        folds: Sequence[FoldScore],
        *,
        metric: str,
    ) -> Trial:
        """The means and the spread of these folds."""
        if not all(math.isfinite(fold.loss) for fold in folds):
            return cls(number, model, weights, settings, (), *[None] * 5)
        values = [getattr(fold, metric) for fold in folds]
        return cls(
            number,
            model,
            weights,
            settings,
            tuple(folds),
            top1=statistics.fmean(fold.top1 for fold in folds),
            balanced_accuracy=statistics.fmean(fold.balanced_accuracy for fold in folds),
            macro_f1=statistics.fmean(fold.macro_f1 for fold in folds),
            loss=statistics.fmean(fold.loss for fold in folds),
            spread=statistics.stdev(values) if len(values) > 1 else None,
        )

    def rank(self, metric: str) -> tuple[float, float, int]:
        """Sorts the best first: by the metric, then by loss, then by number."""
        if self.loss is None:
            return math.inf, math.inf, self.number
        value: float = getattr(self, metric)
        return value if metric == "loss" else -value, self.loss, self.number


def equal_to_best(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those that a share of so many images cannot tell from the best: within one standard error.

    One of folds that differ by chance would be smaller or larger by chance; this is of all images.
    A loss has none, and is taken as it is.
    """
    best = min(trials, key=lambda trial: trial.rank(metric))
    if metric == "loss" or best.loss is None:
        return [best]
    share: float = getattr(best, metric)
    images = sum(fold.num_images for fold in best.folds)
    bound = share - math.sqrt(share * (1 - share) / images)
    return [trial for trial in trials if trial.loss is not None and getattr(trial, metric) >= bound]


def in_order(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """The best first: of those that the metric cannot tell apart the lowest loss, which even a few
    images measure; then the others by the metric."""
    equal = equal_to_best(trials, metric)
    chosen = sorted(equal, key=lambda trial: trial.rank("loss"))
    others = [trial for trial in trials if trial not in equal]
    return chosen + sorted(others, key=lambda trial: trial.rank(metric))


@dataclass(frozen=True)
class BackboneRow:
    """A backbone by its best trial.

    Attributes:
        elapsed_s: Of reading it, its features and its whole search.
    """

    model: str
    weights: str
    parameters: int
    input_size: int
    best: Trial
    elapsed_s: float


@dataclass(frozen=True)
class TestScore:
    """The final model on a split that took no part in any choice."""

    __test__ = False  # no test class, whatever pytest takes its name for

    num_images: int
    top1: float
    top1_low: float
    top1_high: float
    balanced_accuracy: float
    loss: float


@dataclass(frozen=True)
class TuneResult:
    """A search, and the model that was trained by its winner.

    Attributes:
        searched: head, where heads were trained together; else live part, one after another.
        metric: What chose.
        num_folds: 0 where the validation split chose.
        trials: As `in_order` puts them.
        equal: How many of them, from the first, the metric cannot tell apart.
        backbones: The best first; empty where only the config's own was searched.
        best: The winner's config file.
        files: What was written, the run folder left out.
        train: Of the final model; None with ``--no-train``.
        test: Of the final model, where the data has a test split.
        chosen_on: What chose the winner, in words.
        reported: What the figures of the final model are worth, in words.
    """

    model: str
    weights: str
    searched: str
    metric: str
    num_folds: int
    num_train: int
    num_val: int
    num_classes: int
    trials: tuple[Trial, ...]
    equal: int
    backbones: tuple[BackboneRow, ...]
    best: str
    files: tuple[str, ...]
    search_s: float
    elapsed_s: float
    train: TrainSummary | None
    test: TestScore | None
    chosen_on: str
    reported: str
    next: tuple[str, ...]

    @property
    def winner(self) -> Trial:
        """The best trial."""
        return self.trials[0]


@dataclass(frozen=True)
class RangePoint:
    """One step of a learning-rate range test."""

    lr: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class LrRange:
    """A learning-rate range test.

    Attributes:
        lr: The suggestion; None where the loss never fell.
        rule: How it was found, in words.
        lowest: Where the smoothed loss is lowest.
        diverged_at: The rate at which the test ended early; None where it reached its end.
        plot: The picture, where one was drawn.
    """

    model: str
    optimizer: str
    batch_size: int
    num_train: int
    trainable_parameters: int
    points: tuple[RangePoint, ...]
    lr: float | None
    rule: str
    lowest: float
    diverged_at: float | None
    configured_lr: float
    elapsed_s: float
    plot: str | None
