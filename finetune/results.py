"""What each command found out, as plain data; `finetune.report` turns it into text or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.stage_results import PlannedStage, StageSummary
from finetune.stage_results import PredictedTime as PredictedTime
from finetune.stage_results import Scores as Scores

MONITORED = {
    "top1": "top-1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
}
"""What ``train.monitor`` may be, in words."""


@dataclass(frozen=True)
class TrainSummary:
    """The end of a training run.

    Attributes:
        epochs: Of all stages.
        monitor: Which figure chose the best epoch; of equal ones the lower loss did, then the
            earlier.
        best_epoch, val: Of the best epoch; None without validation.
        last: Of the last epoch; None without validation.
        stopped: Why training ended before ``epochs``, if it did.
        trainable_parameters, frozen_parameters: What trained in some stage, and what in none.
        frozen_verified: Tensors and buffers whose SHA-256 in the saved checkpoints is the one
            taken before the first forward pass.
        exempt: Buffers that ``freeze.norm_stats: update`` allowed to move.
        adapted: Frozen weights to which adapters were added.
        resumed_at: Where the run was stopped, and went on later.
        elapsed_s: Of all processes that took part.
    """

    run_dir: str
    model: str
    weights: str
    head: str
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    epochs: int
    last_epoch: int
    stopped: str | None
    monitor: str
    best_epoch: int | None
    val: Scores | None
    last: Scores | None
    trainable_parameters: int
    frozen_parameters: int
    trainable_tensors: int
    frozen_tensors: int
    frozen_verified: int
    exempt: tuple[str, ...]
    adapted: int
    resumed_at: tuple[str, ...]
    stages: tuple[StageSummary, ...]
    elapsed_s: float
    peak_memory_mib: int | None
    rerun: str
    next: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """All that a training run settles before its first step; of parameters, what trains in some
    stage and what in none."""

    dry_run: bool
    run_dir: str
    model: str
    weights: str
    head: str
    device: str
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    batches_per_epoch: int
    trainable_parameters: int
    frozen_parameters: int
    trainable_tensors: int
    frozen_tensors: int
    frozen_hashed: int
    predicted: PredictedTime
    """Of the first stage."""
    stages: tuple[PlannedStage, ...]
    class_weights: dict[str, float] | None
    """By class, where ``data.balance`` is weights."""
    groups: tuple[GroupRow, ...]
    """Of the optimizer, the head's first."""
    config: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PatternRow:
    """What one pattern matched, and what of it no later pattern took over."""

    pattern: str
    freezes: bool
    matched_tensors: int
    tensors: int
    parameters: int
    share: float
    """Of all parameters of the network with its new head."""


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the network with its new head."""

    name: str
    shape: tuple[int, ...]
    numel: int
    frozen: bool
    pattern: str | None
    """The pattern that decided; None where none did, and for the head, which always trains."""
    head: bool


@dataclass(frozen=True)
class NormRow:
    """One normalisation layer while training.

    Attributes:
        mode: ``eval`` or ``train``.
        statistics: ``kept``, ``updated``, or ``none`` where the layer has no running statistics.
    """

    name: str
    type: str
    frozen: bool
    mode: str
    statistics: str


@dataclass(frozen=True)
class Totals:
    """Sums over the parameter rows."""

    parameters: int
    trainable: int
    frozen: int
    tensors: int
    trainable_tensors: int
    frozen_tensors: int


@dataclass(frozen=True)
class Boundary:
    """Where the backward pass ends: no backward is computed in ``last_without_backward`` or
    before it."""

    last_without_backward: str | None
    first_with_backward: str | None


@dataclass(frozen=True)
class Memory:
    """Bytes in float32, beside the weights themselves."""

    optimizer: str
    gradient_bytes: int
    gradient_bytes_saved: int
    optimizer_bytes: int
    optimizer_bytes_saved: int


@dataclass(frozen=True)
class Operations:
    """Multiply-adds per image."""

    input_size: int
    forward: int
    forward_frozen: int
    forward_trainable: int
    backward: int
    backward_if_all_trained: int


@dataclass(frozen=True)
class Cut:
    """Where the frozen prefix ends.

    Attributes:
        after: Last node of the prefix; None where there is none, and everything runs every time.
        crossing: Shape of each tensor that crosses, for one image.
        precision: In which it is kept; where that is still to be timed, float32, the larger.
        bytes_per_image: Of what crosses.
        forward_once: Share of the forward work that is done once.
        cache_bytes: Of the config's data in the views of its policy; None where the data is
            absent or every epoch draws new views.
    """

    after: str | None
    crossing: tuple[tuple[int, ...], ...]
    precision: str
    bytes_per_image: int
    forward_once: float
    cache_bytes: int | None


@dataclass(frozen=True)
class GroupRow:
    """Parameters that the optimizer moves alike."""

    lr: float
    """At its peak."""
    weight_decay: float
    tensors: int
    parameters: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class AdapterFacts:
    """Frozen weights that get an adapter, and the numbers that all adapters hold."""

    weights: int
    parameters: int


@dataclass(frozen=True)
class FreezeReport:
    """What is frozen, by which pattern, and what that saves."""

    model: str
    num_classes: int
    head: str
    patterns: tuple[PatternRow, ...]
    parameters: tuple[ParameterRow, ...]
    totals: Totals
    norm_layers: tuple[NormRow, ...]
    backward_boundary: Boundary
    cut: Cut
    memory: Memory
    groups: tuple[GroupRow, ...]
    """Of the optimizer, the head's first."""
    adapters: AdapterFacts
    operations: Operations
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StagedFreezeReport:
    """The freeze reports of a run's stages.

    Attributes:
        epochs: Of each; auto where the data is absent, by whose size it is chosen.
    """

    stages: tuple[FreezeReport, ...]
    epochs: tuple[int | str, ...]


@dataclass(frozen=True)
class WeightsRow:
    """A weights entry; ``top1`` is the accuracy on ImageNet that torchvision publishes."""

    name: str
    top1: float | None
    input_size: int


@dataclass(frozen=True)
class ModelRow:
    """A builder that `model.name` accepts."""

    name: str
    parameters: int
    head: str
    input_size: int
    sizes: str
    weights: tuple[WeightsRow, ...]


@dataclass(frozen=True)
class ModelList:
    """The builders whose names hold a word."""

    models: tuple[ModelRow, ...]


@dataclass(frozen=True)
class CacheRow:
    """Stored features; ``used_at`` in seconds since the epoch."""

    key: str
    root: str
    views: str
    form: str
    num_bytes: int
    used_at: float


@dataclass(frozen=True)
class CacheList:
    """The stores below a folder, or those that were removed from it."""

    folder: str
    stores: tuple[CacheRow, ...]
    removed: bool
