"""One epoch's figures: for people, for ``metrics.jsonl``, and back from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetune.evaluate import Evaluation
from finetune.loop import EpochResult

_VAL_FIGURES = ("num_images", "top1", "balanced_accuracy", "macro_f1", "top5", "loss")


@dataclass(frozen=True)
class Epoch:
    """One epoch's training and the evaluation after it, if there is one."""

    trained: EpochResult
    val: Evaluation | None
    """None where nothing is held out."""
    eval_s: float
    stage: int = 1

    def record(self) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``."""
        val = None if self.val is None else {key: getattr(self.val, key) for key in _VAL_FIGURES}
        mine = {"stage": self.stage, "val": val, "eval_s": self.eval_s}
        return asdict(self.trained) | mine

    @classmethod
    def of(cls, record: dict[str, Any]) -> Epoch:
        """From its line; what single classes did is not in it."""
        trained = {key: record[key] for key in EpochResult.__dataclass_fields__}
        val: Evaluation | None = None
        if record["val"] is not None:
            figures = {key: record["val"][key] for key in _VAL_FIGURES}
            val = Evaluation(**figures, per_class=())
        return cls(EpochResult(**trained), val, record["eval_s"], record.get("stage", 1))

    def line(self, total: int, *, monitor: str, is_best: bool, uncounted: str = "") -> str:
        """Show the epoch in one line, for people.

        Args:
            uncounted: Follows the word best, where early stopping waits nevertheless.
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
