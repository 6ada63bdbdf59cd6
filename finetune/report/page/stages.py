"""Stages of a run on its page: table rows, and first epochs for the learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finetune.config.resolved import PlannedConfig
from finetune.core.text import listed_patterns


@dataclass(frozen=True)
class StageRow:
    """A table row of a stage; ``shown`` if the page's checkpoint is from this stage."""

    number: int
    epochs: str
    patterns: str
    optimizer: str
    best: str
    shown: bool


def stage_rows(
    stages: Sequence[PlannedConfig],
    records: Sequence[Mapping[str, Any]],
    epoch: int,
    *,
    monitor: str = "top1",
) -> tuple[StageRow, ...]:
    """Return one row per stage.

    Args:
        stages: Stages of the config.
        records: Records of ``metrics.jsonl``; if empty, planned epochs are shown.
        epoch: Epoch of the checkpoint.
        monitor: Metric that selected the best epochs.
    """
    return tuple(_rows(stages, records, epoch, monitor))


def _rows(
    stages: Sequence[PlannedConfig], records: Sequence[Mapping[str, Any]], epoch: int, monitor: str
) -> Iterator[StageRow]:
    last = 0
    for number, stage in enumerate(stages, start=1):
        mine = [record for record in records if record.get("stage") == number]
        first, last = last + 1, int(mine[-1]["epoch"]) if mine else last + stage.train.epochs
        best = max(mine, key=lambda record: _rank(record["val"], monitor), default=None)
        yield StageRow(
            number=number,
            epochs=str(first) if first == last else f"{first} to {last}",
            patterns=listed_patterns(stage.freeze.patterns),
            optimizer=f"{stage.optimizer.name}, lr {stage.optimizer.lr:g}",
            best=f"{best['epoch']}: top-1 {best['val']['top1']:.2%}" if best else "-",
            shown=first <= epoch <= last,
        )


def _rank(val: Mapping[str, Any], monitor: str) -> tuple[float, float]:
    figure = -val["loss"] if monitor == "loss" else val[monitor]
    return figure, -val["loss"]


def first_epochs(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the first epoch of every stage after the first."""
    return [
        int(record["epoch"])
        for before, record in pairwise(records)
        if record.get("stage") != before.get("stage")
    ]
