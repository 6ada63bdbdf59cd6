"""Results of ``train`` and ``train --dry-run``; a run without stages has one stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finetune.results.caveats import Caveat, with_choices
from finetune.results.evaluation import Interval
from finetune.results.features import FeatureCounts
from finetune.results.freeze import GroupRow


@dataclass(frozen=True)
class Scores:
    """Metrics of one evaluation; accuracies are fractions."""

    top1: float
    loss: float
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class PredictedTime:
    """Predicted times in seconds, from timing one batch of each part.

    Attributes:
        fill_s: Time to fill the feature cache, spent once by the first run; None without a cache.
        epoch_with_cache_s: Time of an epoch that reads cached features; None without a cache.
        epoch_without_cache_s: Time of an epoch that computes all features.
    """

    fill_s: float | None
    epoch_with_cache_s: float | None
    epoch_without_cache_s: float


@dataclass(frozen=True)
class FoundRates:
    """Learning rate and weight decay of a head, found by cross-validation.

    Attributes:
        heads: Number of heads trained on each fold, each with other rates.
        folds: Number of folds; a single one holds out part of the training images once.
        seconds: Time that the search took.
    """

    lr: float
    weight_decay: float
    heads: int
    folds: int
    seconds: float


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters and of tensors, those of adapters included.

    Those of a run are trainable if they train in at least one of its stages.
    """

    trainable_parameters: int
    frozen_parameters: int
    trainable_tensors: int
    frozen_tensors: int


@dataclass(frozen=True)
class RunFacts(ParameterCounts):
    """Facts about a run that are known before its first step."""

    run_dir: str
    model: str
    weights: str
    head: str
    class_names: tuple[str, ...]
    num_train: int
    num_val: int


@dataclass(frozen=True)
class StageFacts(ParameterCounts):
    """Facts about a stage that are known before it trains.

    Attributes:
        number: Number of the stage, from 1.
        lr: Peak learning rate.
        cut_after: Last module of the frozen prefix; None if the whole network runs every time.
        forward_once: Fraction of the forward multiply-adds that are computed once.
    """

    number: int
    epochs: int
    patterns: tuple[str, ...]
    norm_stats: str
    optimizer: str
    lr: float
    cut_after: str | None
    forward_once: float


@dataclass(frozen=True)
class PlannedStage(StageFacts):
    """Stage of a dry run."""

    predicted: PredictedTime


@dataclass(frozen=True)
class StageSummary(StageFacts):
    """Trained stage.

    Attributes:
        first_epoch, last_epoch: Epochs of the stage, counted over the whole run.
        best_epoch, val: Best epoch of this stage and its metrics; None without validation.
        stopped: Reason for ending before the last epoch; None if the stage did not.
        frozen_verified: Number of tensors and buffers whose SHA-256 in the stage's last checkpoint
            equals the one taken at its start.
        state_kept: Number of parameters whose optimizer state was carried over from the previous
            stage.
        exempt: Buffers that ``norm_stats: update`` allowed to change.
    """

    first_epoch: int
    last_epoch: int
    best_epoch: int | None
    val: Scores | None
    stopped: str | None
    frozen_verified: int
    state_kept: int
    exempt: tuple[str, ...]
    elapsed_s: float

    @classmethod
    def of(cls, values: dict[str, Any]) -> StageSummary:
        """Construct a summary from plain values, as saved in a checkpoint."""
        lists = {key: tuple(values[key]) for key in ("patterns", "exempt")}
        val = None if values["val"] is None else Scores(**values["val"])
        return cls(**{**values, **lists, "val": val})


MONITORED = {
    "top1": "top-1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
}
"""Display name of each value of ``train.monitor``."""


@dataclass(frozen=True)
class TrainSummary(RunFacts):
    """Summary of a training run.

    Attributes:
        epochs: Total number of epochs of all stages.
        monitor: Metric that selected the best epoch; ties are broken by lower loss, then by the
            earlier epoch.
        best_epoch, val: Best epoch and its metrics; None without validation.
        top1_interval: Wilson interval of ``val.top1``; None without validation, and for images in
            groups.
        last: Metrics of the last epoch; None without validation.
        stopped: Reason for ending before ``epochs``; None if training did not.
        frozen_verified: Number of tensors and buffers whose SHA-256 in the saved checkpoints equals
            the one taken before the first forward pass.
        exempt: Buffers that ``freeze.norm_stats: update`` allowed to change.
        adapted: Number of frozen weights with adapters.
        resumed_at: Progress at which the run was resumed, once per resume.
        found_rates: Rates that this process found for ``auto``; None if it did not search.
        elapsed_s: Time of all processes of the run together, in seconds.
        features: Rows of features that this process computed and reused; None if none are kept.
        chosen_on_validation: What was chosen by the accuracy on the validation images, such as
            ``the epoch``.
        caveats: What limits what ``val`` says about new photos, the most serious first.
    """

    epochs: int
    last_epoch: int
    stopped: str | None
    monitor: str
    best_epoch: int | None
    val: Scores | None
    top1_interval: Interval | None
    last: Scores | None
    frozen_verified: int
    exempt: tuple[str, ...]
    adapted: int
    resumed_at: tuple[str, ...]
    stages: tuple[StageSummary, ...]
    found_rates: FoundRates | None
    elapsed_s: float
    features: FeatureCounts | None
    peak_memory_mib: int | None
    peak_gpu_memory_mib: int | None
    rerun: str
    next: tuple[str, ...]
    chosen_on_validation: tuple[str, ...] = ()
    caveats: tuple[Caveat, ...] = ()

    def also_chose(self, *chose: str) -> TrainSummary:
        """Return the summary of a run by whose accuracy more than its epoch was chosen."""
        return replace(
            self,
            chosen_on_validation=(*chose, *self.chosen_on_validation),
            caveats=with_choices(self.caveats, *chose, *self.chosen_on_validation),
        )


@dataclass(frozen=True)
class Rung:
    """Run of the ladder of ``recipe: auto``.

    Attributes:
        what: ``linear_probe``, ``last_part`` or ``everything``.
        epochs: Total number of epochs of its stages.
        val: Metrics of its best epoch.
        low, high: Confidence interval of ``val.top1``.
        ended_s: Seconds from the start of the command to the end of the run.
        is_best: Whether it was the best rung so far when it ended.
    """

    number: int
    what: str
    run_dir: str
    epochs: int
    val: Scores
    low: float
    high: float
    ended_s: float
    is_best: bool


@dataclass(frozen=True)
class PredictedGain:
    """Validation top-1 predicted for another budget, by a power law of the error.

    An upper bound in practice, as the error falls more and more slowly.
    """

    budget_s: float
    top1: float


@dataclass(frozen=True)
class LadderSummary:
    """Summary of ``recipe: auto``.

    Attributes:
        chosen: Number of the rung whose run is in ``run_dir``.
        doubled: Prediction for twice the budget; None if there is no basis for one.
        note: Why the ladder ended.
        train: Summary of the chosen run.
    """

    budget_s: float
    elapsed_s: float
    run_dir: str
    monitor: str
    num_val: int
    rungs: tuple[Rung, ...]
    chosen: int
    doubled: PredictedGain | None
    note: str
    train: TrainSummary
    rerun: str
    next: tuple[str, ...]


@dataclass(frozen=True)
class DryRun(RunFacts):
    """Result of ``train --dry-run``: everything a run determines before its first step."""

    dry_run: bool
    device: str
    batches_per_epoch: int
    frozen_hashed: int
    predicted: PredictedTime
    """Predicted time of the first stage."""
    stages: tuple[PlannedStage, ...]
    class_weights: dict[str, float] | None
    """Class weights of the loss; None unless ``data.balance`` is weights."""
    groups: tuple[GroupRow, ...]
    """Parameter groups of the optimizer, the head's first."""
    config: dict[str, Any]
    notes: tuple[str, ...]
