"""Metrics of one epoch, as a line of text and as a record of ``metrics.jsonl``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetune.training.evaluate import Evaluation
from finetune.training.loop import EpochResult

_VAL_FIGURES = ("num_images", "top1", "balanced_accuracy", "macro_f1", "top5", "loss")


@dataclass(frozen=True)
class Epoch:
    """Training metrics of one epoch and the evaluation after it, if there is one."""

    trained: EpochResult
    val: Evaluation | None
    """Validation metrics; None without a validation split."""
    eval_s: float
    stage: int = 1

    def record(self) -> dict[str, Any]:
        """Return the epoch's record in ``metrics.jsonl``."""
        val = None if self.val is None else {key: getattr(self.val, key) for key in _VAL_FIGURES}
        mine = {"stage": self.stage, "val": val, "eval_s": self.eval_s}
        return asdict(self.trained) | mine

    @classmethod
    def of(cls, record: dict[str, Any]) -> Epoch:
        """Return the epoch of a ``metrics.jsonl`` record, which has no per-class metrics."""
        trained = {key: record[key] for key in EpochResult.__dataclass_fields__}
        val: Evaluation | None = None
        if record["val"] is not None:
            figures = {key: record["val"][key] for key in _VAL_FIGURES}
            val = Evaluation(**figures, per_class=())
        return cls(EpochResult(**trained), val, record["eval_s"], record.get("stage", 1))

    def line(self, total: int, *, monitor: str, is_best: bool) -> str:
        """Format the epoch as one line of at most 79 characters, as wide as that of other epochs.

        Beside the accuracy stands the macro F1 if that is monitored, else the balanced accuracy.
        """
        number = f"{self.trained.epoch:>{len(str(total))}}/{total}"
        start = f"epoch {number}  loss {_six(self.trained.loss)}"
        if self.val is None:
            return start
        if monitor == "macro_f1":
            other = f"macro F1 {self.val.macro_f1:7.2%}"
        else:
            other = f"balanced {self.val.balanced_accuracy:7.2%}"
        return (
            f"{start}, val {_six(self.val.loss)}  top-1 {self.val.top1:7.2%}  {other}"
            f"{'  best' if is_best else ''}"
        )

    def details(self, waiting: str) -> str:
        """Format the learning rate and the durations, and a note about early stopping."""
        return (
            f"epoch {self.trained.epoch}: lr {self.trained.lr:.2g}, {self.trained.elapsed_s:.1f} s "
            f"to train, {self.eval_s:.1f} s to evaluate{f'; {waiting}' if waiting else ''}"
        )


def _six(number: float) -> str:
    """Format a number from 0 on with six characters."""
    for decimals in (4, 3, 2, 1, 0):
        text = f"{number:.{decimals}f}"
        if len(text) <= 6:
            return f"{text:>6}"
    return f"{number:6.0e}"
