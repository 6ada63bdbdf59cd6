"""Early stopping and selection of the best epoch by one validation metric."""

from __future__ import annotations

from finetune.config.resolved import ResolvedTrain
from finetune.config.schema import TrainConfig
from finetune.core.text import plural
from finetune.results.train import MONITORED
from finetune.training.evaluate import Evaluation


class EarlyStopping:
    """Early stopping on the metric ``train.monitor``.

    The best epoch has the best value of the metric; ties are broken by the lower loss, then by the
    earlier epoch. Early stopping uses the metric alone, and counts an epoch as an improvement only
    if it is better by more than ``min_delta``.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.name = config.monitor
        self.stopping = config.early_stopping
        self._to_beat: float | None = None
        self._waited = 0

    def figure(self, val: Evaluation) -> float:
        """Return the monitored metric, negated for the loss so that higher is better."""
        return -val.loss if self.name == "loss" else float(getattr(val, self.name))

    def rank(self, val: Evaluation) -> tuple[float, float]:
        """Return a sort key that is greater for a better epoch; the earlier one wins ties."""
        return self.figure(val), -val.loss

    def see(self, val: Evaluation) -> None:
        """Update the state with an epoch's evaluation."""
        figure = self.figure(val)
        min_delta = self.stopping.min_delta if self.stopping else 0.0
        self._waited += 1
        if self._to_beat is None or figure > self._to_beat + min_delta:
            self._to_beat, self._waited = figure, 0

    def waiting(self) -> str:
        """Return a note if the last epoch is no improvement for early stopping, else ``""``."""
        if self.stopping is None or not self._waited:
            return ""
        return (
            f"early stopping: {self._waited} of {plural(self.stopping.patience, 'epoch')} without "
            "improvement"
        )

    @property
    def stop(self) -> bool:
        """Whether training stops after the last epoch passed to `see`."""
        return self.stopping is not None and self._waited >= self.stopping.patience


def why_stopped(config: ResolvedTrain, last_epoch: int) -> str | None:
    """Describe why training stopped before its last epoch; None if it did not."""
    stopping = config.early_stopping
    if stopping is None or last_epoch >= config.epochs:
        return None
    more = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
    waited = "an epoch" if stopping.patience == 1 else f"{stopping.patience} epochs"
    return f"val {MONITORED[config.monitor]} had not got better{more} for {waited}"
