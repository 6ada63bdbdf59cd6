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

    def line(self, total: int, *, monitor: str, is_best: bool, uncounted: str = "") -> str:
        """Format the epoch as one line of text.

        Args:
            uncounted: Text after the word "best" if early stopping does not count the epoch as an
                improvement.
        """
        start = (
            f"epoch {self.trained.epoch:>{len(str(total))}}/{total}"
            f"  lr {self.trained.lr:.2g}  loss {self.trained.loss:.4f}"
        )
        if self.val is None:
            return start
        macro_f1 = f"  macro F1 {self.val.macro_f1:.2%}" if monitor == "macro_f1" else ""
        return (
            f"{start}  val loss {self.val.loss:.4f}  val top-1 {self.val.top1:.2%}"
            f"  balanced {self.val.balanced_accuracy:.2%}{macro_f1}"
            f"{f'  best{uncounted}' if is_best else ''}"
        )
