"""Results of ``tune`` and ``lr-find``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.results.caveats import Caveat
from finetune.results.features import FeatureCounts
from finetune.results.train import TrainSummary


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of a trial; all that a head needs besides the schedule."""

    optimizer: str
    lr: float
    weight_decay: float
    label_smoothing: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class FoldScore:
    """Metrics on a fold's held-out images after the last epoch; the loss is NaN or infinite if
    training diverged."""

    num_images: int
    top1: float
    balanced_accuracy: float
    macro_f1: float
    loss: float


@dataclass(frozen=True)
class LogisticBaseline:
    """Logistic regression on the same folds as the trials, without augmentation.

    Attributes:
        top1: Mean over the folds, with the best of several L2 penalties.
        penalty: That penalty; ``C`` of scikit-learn is 1 / (images * penalty).
    """

    top1: float
    penalty: float


@dataclass(frozen=True)
class Trial:
    """Trial: hyperparameters and their metrics.

    Attributes:
        number: Number of the trial; 0 has the config's own values.
        model, weights: Backbone and its weights.
        settings: Hyperparameters.
        folds: Metrics of each fold; empty if any fold diverged.
        top1, balanced_accuracy, macro_f1, loss: Means over the folds; None if any fold diverged.
        spread: Standard deviation of the selection metric over the folds; None for a single fold,
            or if any fold diverged.
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
        """Construct a trial with the means and the spread of ``folds``."""
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
        """Return a sort key that puts the best trial first: by metric, then loss, then number."""
        if self.loss is None:
            return math.inf, math.inf, self.number
        value: float = getattr(self, metric)
        return value if metric == "loss" else -value, self.loss, self.number


def equal_to_best(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the trials within one standard error of the best.

    The standard error is that of a proportion over the images of all folds: a standard deviation
    over few folds would itself vary by chance. A loss has no such error: only the best trial is
    returned.
    """
    best = min(trials, key=lambda trial: trial.rank(metric))
    if metric == "loss" or best.loss is None:
        return [best]
    share: float = getattr(best, metric)
    images = sum(fold.num_images for fold in best.folds)
    bound = share - math.sqrt(share * (1 - share) / images)
    return [trial for trial in trials if trial.loss is not None and getattr(trial, metric) >= bound]


def in_order(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the trials sorted, best first.

    Those within one standard error of the best come first, sorted by loss, which is informative
    even for few images; then the others, sorted by the metric.
    """
    equal = equal_to_best(trials, metric)
    chosen = sorted(equal, key=lambda trial: trial.rank("loss"))
    others = [trial for trial in trials if trial not in equal]
    return chosen + sorted(others, key=lambda trial: trial.rank(metric))


def without_selection_bias(trials: Sequence[Trial], metric: str) -> float | None:
    """Return the expected metric of the best trial, without the bias of having selected it.

    For each fold, the best trial by the other folds is scored on that fold alone, as in the outer
    loop of a nested cross-validation (Varma and Simon 2006).

    Args:
        trials: Trials on the same folds.

    Returns:
        Mean over the folds; None with fewer than two folds, or if all trials diverged.
    """
    known = [trial for trial in trials if trial.loss is not None]
    if not known or len(known[0].folds) < 2:
        return None
    scores = []
    for left_out in range(len(known[0].folds)):
        others = [
            Trial.of(
                trial.number,
                trial.model,
                trial.weights,
                trial.settings,
                trial.folds[:left_out] + trial.folds[left_out + 1 :],
                metric=metric,
            )
            for trial in known
        ]
        best = in_order(others, metric)[0]
        chosen = known[others.index(best)]
        scores.append(float(getattr(chosen.folds[left_out], metric)))
    return statistics.fmean(scores)


@dataclass(frozen=True)
class BackboneRow:
    """Backbone with its best trial.

    Attributes:
        elapsed_s: Time for loading the backbone, computing its features and its whole search, in
            seconds.
    """

    model: str
    weights: str
    parameters: int
    input_size: int
    best: Trial
    elapsed_s: float


@dataclass(frozen=True)
class TestScore:
    """Metrics of the final model on the test split, which took no part in any selection."""

    __test__ = False  # keeps pytest from collecting it as a test class

    num_images: int
    top1: float
    top1_low: float
    top1_high: float
    balanced_accuracy: float
    loss: float
    caveats: tuple[Caveat, ...] = ()
    """Facts that limit what the metrics say about new photos."""


@dataclass(frozen=True)
class TuneResult:
    """Result of a search, and of the final model trained with the best trial's settings.

    Attributes:
        searched: ``head`` if stacked heads were trained in parallel; else ``live part``, the
            trainable part, trained once per trial.
        metric: Selection metric.
        num_folds: Number of cross-validation folds; 0 if selected on the validation split.
        trials: Trials in the order of `in_order`, after the default setting that is kept, if any.
        equal: Number of trials within one standard error of the best.
        backbones: Backbones, best first; empty if only the config's own was searched.
        best: Path of the config file of the best trial.
        files: Paths of the files written, without the run directory.
        features: Rows of features that the search computed and reused; None if none are kept.
        logistic: Logistic regression on the same folds as the best backbone's trials; None if more
            than a linear head is trained, without folds, or if it would take long.
        unbiased: Metric to expect of the best trial of the first round on the best backbone, by
            `without_selection_bias`; None without folds.
        unbiased_default: The same of a choice among the default settings only: those of the config
            and the rates that ``lr: auto`` chooses from.
        keeps_default: Whether the best of the default settings is used, because the search is not
            expected to be better; only with one backbone.
        train: Summary of the final model's training; None with ``--no-train``.
        test: Metrics of the final model on the test split; None if there is none.
        chosen_on: Description of the images on which the best trial was selected.
        reported: Description of how far the final model's metrics can be trusted.
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
    features: FeatureCounts | None
    logistic: LogisticBaseline | None
    unbiased: float | None
    unbiased_default: float | None
    keeps_default: bool
    train: TrainSummary | None
    test: TestScore | None
    chosen_on: str
    reported: str
    next: tuple[str, ...]

    @property
    def winner(self) -> Trial:
        """Return the best trial."""
        return self.trials[0]


@dataclass(frozen=True)
class RangePoint:
    """Step of a learning-rate range test."""

    lr: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class LrRange:
    """Result of a learning-rate range test.

    Attributes:
        lr: Suggested learning rate; None if the loss never decreased.
        rule: Description of how ``lr`` was found.
        lowest: Learning rate with the lowest smoothed loss.
        diverged_at: Learning rate at which the test stopped early; None if it reached its end.
        plot: Path of the plot; None if none was drawn.
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
    features: FeatureCounts | None
    plot: str | None
