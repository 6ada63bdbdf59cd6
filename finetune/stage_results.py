"""What commands found out about the stages of a run; a run without stages is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """Figures of one evaluation; accuracies are fractions."""

    top1: float
    loss: float
    balanced_accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class PredictedTime:
    """Seconds, from one batch of each part; ``fill_s`` is paid once, and by the first run alone.

    The first two are None where there is nothing to keep.
    """

    fill_s: float | None
    epoch_with_cache_s: float | None
    epoch_without_cache_s: float


@dataclass(frozen=True)
class StageFacts:
    """What is settled of a stage before it trains.

    Attributes:
        number: From 1.
        lr: Peak learning rate.
        cut_after: Last module of what is computed once; None where everything runs every time.
        forward_once: Share of the forward work that is done once.
    """

    number: int
    epochs: int
    patterns: tuple[str, ...]
    norm_stats: str
    optimizer: str
    lr: float
    trainable_parameters: int
    frozen_parameters: int
    trainable_tensors: int
    frozen_tensors: int
    cut_after: str | None
    forward_once: float


@dataclass(frozen=True)
class PlannedStage(StageFacts):
    """A stage of a dry run."""

    predicted: PredictedTime


@dataclass(frozen=True)
class StageSummary(StageFacts):
    """A stage that was trained.

    Attributes:
        first_epoch, last_epoch: Numbered through the whole run.
        best_epoch, val: Of this stage; None without validation.
        stopped: Why it ended before its last epoch, if it did.
        frozen_verified: Tensors and buffers whose SHA-256 in the checkpoint at its end is the one
            taken at its start.
        state_kept: Parameters of which the optimizer took over the state from the stage before.
        exempt: Buffers that ``norm_stats: update`` allowed to move.
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
        """From its own plain values."""
        lists = {key: tuple(values[key]) for key in ("patterns", "exempt")}
        val = None if values["val"] is None else Scores(**values["val"])
        return cls(**{**values, **lists, "val": val})
