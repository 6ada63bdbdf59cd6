"""Which epoch is the best, and when to stop: by one validation figure."""

from __future__ import annotations

from finetune.config import TrainConfig
from finetune.evaluate import Evaluation
from finetune.results import MONITORED


class Monitor:
    """Watches ``train.monitor`` from epoch to epoch.

    The best epoch has the best figure; among equal ones the lower loss, then the earlier. Early
    stopping goes by the figure alone, and counts as better only what is so by more than
    ``min_delta``.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.name = config.monitor
        self.stopping = config.early_stopping
        self._to_beat: float | None = None
        self._waited = 0

    def figure(self, val: Evaluation) -> float:
        """The monitored figure with such a sign that more is better."""
        return -val.loss if self.name == "loss" else float(getattr(val, self.name))

    def rank(self, val: Evaluation) -> tuple[float, float]:
        """What a better epoch has a greater one of; among equal ones the earlier is the best."""
        return self.figure(val), -val.loss

    def see(self, val: Evaluation) -> None:
        """Take in an epoch's evaluation."""
        figure = self.figure(val)
        min_delta = self.stopping.min_delta if self.stopping else 0.0
        self._waited += 1
        if self._to_beat is None or figure > self._to_beat + min_delta:
            self._to_beat, self._waited = figure, 0

    def uncounted(self) -> str:
        """Words on an epoch that is the best and that early stopping did not count; or none."""
        if self.stopping is None or not self._waited:
            return ""
        return (
            f" by less than early stopping counts ({self._waited} of {self.stopping.patience} "
            "epochs waited)"
        )

    @property
    def stop(self) -> bool:
        """Whether training ends after the epoch seen last."""
        return self.stopping is not None and self._waited >= self.stopping.patience


def why_stopped(config: TrainConfig, last_epoch: int) -> str | None:
    """Why training ended before its last epoch, in words; None where it did not."""
    stopping = config.early_stopping
    if stopping is None or last_epoch >= config.epochs:
        return None
    more = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
    waited = "an epoch" if stopping.patience == 1 else f"{stopping.patience} epochs"
    return f"val {MONITORED[config.monitor]} had not got better{more} for {waited}"
