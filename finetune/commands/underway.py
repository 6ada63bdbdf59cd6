"""A run under way: all that changes while it trains, how that is saved, and how it goes on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finetune.adapters import named_plainly, plain_state
from finetune.averaging import Average
from finetune.checkpoint import Checkpoint, Frozen, Metadata, Training, TrainingRecord
from finetune.commands.epoch_record import Epoch
from finetune.commands.preparation import Carried, Prepared
from finetune.commands.resuming import Resumed
from finetune.data.fingerprint import fingerprint_of
from finetune.errors import CheckpointError, NotFiniteError
from finetune.handover import Memory
from finetune.metrics import Meter
from finetune.monitor import Monitor
from finetune.optimizer_state import advance, memory_of, remember
from finetune.position import Position
from finetune.runtime import versions
from finetune.schedules import build_schedule, end_epoch
from finetune.stage_results import StageSummary
from finetune.tensor_file import copy_module_versions

_OPTIMIZER, _METER, _WEIGHTS = "optimizer/", "meter/", "weights/"
"""Kinds of tensors in a training; weights, where those of the model beside it are averages, or have
adapters added to them."""


@dataclass(frozen=True)
class Past:
    """What the earlier stages of a run left behind; of the first one nothing.

    Attributes:
        records: Of their epochs.
        unchanged: Name and SHA-256 of every tensor that all of them left as it was loaded.
        best: Epoch whose weights ``best.pt`` holds.
        memory: Of the optimizer of the last of them; None where this process did not train it.
    """

    stages: tuple[StageSummary, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    unchanged: Mapping[str, str] | None = None
    best: Epoch | None = None
    memory: Memory | None = None
    resumed_at: tuple[str, ...] = ()

    @classmethod
    def of(cls, resumed: Resumed) -> Past:
        """As an earlier process wrote it down.

        Raises:
            CheckpointError: it does not fit.
        """
        record = resumed.training.record
        before = [line for line in record.records if line.get("stage", 1) <= resumed.stage]
        try:
            stages = [StageSummary.of(values) for values in record.stages]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{resumed.path}: damaged: {error!r}") from error
        return cls(tuple(stages), tuple(before), record.unchanged)


class Underway:
    """What a stage is made of between two steps; a run without stages is one.

    Args:
        past: What earlier stages left behind.
        resumed: Where an earlier process left it.
        start: Of the run, by this process's clock, earlier processes counted in.

    Attributes:
        records: Of each epoch that was evaluated, as in ``metrics.jsonl``.
        resumed_at: Where earlier processes stopped.
        state_kept: Parameters of which the optimizer took over the state from the stage before.

    Raises:
        CheckpointError: what is to be resumed does not fit.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        steps_per_epoch: int,
        start: float,
        past: Past,
        resumed: Resumed | None = None,
    ) -> None:
        config, model = prepared.config, prepared.model
        self.prepared = prepared
        self.past = past
        self.position = Position(stage=len(past.stages), epoch=len(past.records) + 1)
        self.records: list[dict[str, Any]] = list(past.records)
        self.state_kept = 0
        self.resumed_at = past.resumed_at
        self.meter = Meter(prepared.plan.num_classes, prepared.engine.device)
        self.monitor = Monitor(config.train)
        self.optimizer = prepared.optimizer_of(config.optimizer)
        self._parameters = list(named_plainly(model))
        if past.memory is not None:
            plain = {decision.name for decision in prepared.plan.freeze.decisions}
            self.state_kept = past.memory.hand_over(self.optimizer, self._parameters, plain=plain)
            past.memory.tensors.clear()  # of the size of the network: once is enough
        self.schedule = build_schedule(
            self.optimizer,
            config.schedule,
            epochs=config.train.epochs,
            steps_per_epoch=steps_per_epoch,
        )
        self._has_adapters = bool(prepared.plan.adapters)
        self._state = model.state_dict()  # its tensors are the model's own
        frozen = prepared.proof.sha256
        self._changing = {k: v for k, v in self._state.items() if k not in frozen}
        self.average: Average | None = None
        if config.train.ema is not None:
            self.average = Average(self._changing, config.train.ema)
        self._data = fingerprint_of(prepared.data)
        self._start = start
        if resumed is not None:
            try:
                self._go_on(resumed.training, steps_per_epoch)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{resumed.path}: damaged: what it says of the training does not fit"
                ) from error

    def add(self, epoch: Epoch) -> None:
        """An epoch was trained and evaluated."""
        self.records.append(epoch.record())
        self._take_in(epoch)

    def _take_in(self, epoch: Epoch) -> None:
        if epoch.val is None:
            return
        self.monitor.see(epoch.val)
        end_epoch(self.schedule, self.monitor.figure(epoch.val))

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model is what is evaluated and saved."""
        return nullcontext() if self.average is None else self.average.in_place()

    def checkpoint(self, *, evaluated: bool) -> Checkpoint:
        """What stands now; its tensors go on changing.

        Args:
            evaluated: The last of ``records`` is of the epoch under way.

        Raises:
            NotFiniteError: a tensor holds what is no finite number.
        """
        remembered, numbers = memory_of(self.optimizer, self._parameters)
        tensors = _under(_OPTIMIZER, remembered)
        if not evaluated:
            tensors |= _under(_METER, self.meter.tensors())
        model = plain_state(self.prepared.model)
        if self.average is not None or self._has_adapters:
            tensors |= _under(_WEIGHTS, self._changing)
        if self.average is not None:
            model = self._with(self.average.tensors)
        changing = {k: v for k, v in model.items() if k not in self.prepared.proof.sha256}
        self._refuse_not_finite({**changing, **tensors})
        # Not validated: with many records that would take as long as a short epoch.
        record = TrainingRecord.model_construct(
            given=self.prepared.given,
            position=self.position.after_epoch() if evaluated else replace(self.position),
            records=tuple(self.records),
            data=self._data,
            frozen=self.prepared.proof.digest,
            threads=self.prepared.threads,
            optimizer=numbers,
            elapsed_s=time.perf_counter() - self._start,
            resumed_at=self.resumed_at,
            stages=tuple(asdict(stage) for stage in self.past.stages),
            unchanged=None if self.past.unchanged is None else dict(self.past.unchanged),
            state_kept=self.state_kept,
        )
        metadata = metadata_of(
            self.prepared,
            epoch=len(self.records),
            metrics=(self.records[-1]["val"] or {}) if evaluated else {},
        )
        return Checkpoint(model, metadata, Training(record, tensors))

    def carried(self) -> Carried:
        """The network as its last epoch was evaluated and saved, for the next stage."""
        with self.averaged():
            state = plain_state(self.prepared.model)
            kept = OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())
        copy_module_versions(state, kept)
        return Carried(kept, self.prepared.config.stages)

    def memory(self) -> Memory:
        """What the optimizer remembers."""
        return Memory.of(self.optimizer, self._parameters)

    def _refuse_not_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                lr = float(self.optimizer.param_groups[0]["lr"])
                epoch, batch = self.position.epoch, self.position.batch
                raise NotFiniteError(name, epoch=epoch, batch=batch, lr=lr)

    def _with(self, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """The model's state with these in it."""
        state = OrderedDict((name, tensors.get(name, t)) for name, t in self._state.items())
        copy_module_versions(self._state, state)
        return state

    def _go_on(self, training: Training, steps_per_epoch: int) -> None:
        """Take over what an earlier process left; the model has its tensors already."""
        record, tensors = training.record, training.tensors
        self.position = replace(record.position)
        self.records = list(record.records)
        self.resumed_at = (*record.resumed_at, str(record.position))
        self.state_kept = record.state_kept
        if self.position.batch:
            self.meter.load(_of(_METER, tensors))
        here = [Epoch.of(line) for line in self.records[len(self.past.records) :]]
        for epoch in here:
            advance(self.schedule, steps_per_epoch)
            self._take_in(epoch)
        advance(self.schedule, self.position.steps - len(here) * steps_per_epoch)
        remember(self.optimizer, self._parameters, _of(_OPTIMIZER, tensors), record.optimizer)
        if self.average is not None:
            self.average.load(self._changing, self.position.steps)
        if self.average is not None or self._has_adapters:
            weights = _of(_WEIGHTS, tensors)
            with torch.no_grad():
                for name, tensor in self._changing.items():
                    tensor.copy_(weights[name])


def metadata_of(
    prepared: Prepared, *, epoch: int, metrics: dict[str, float | int | None]
) -> Metadata:
    """Of a checkpoint.

    Args:
        epoch: The last one that was evaluated.
        metrics: Of the checkpoint's tensors.
    """
    spec, freeze = prepared.plan.spec, prepared.plan.freeze
    return Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=prepared.data.train.class_names,
        preprocessing=spec.preprocessing,
        config=prepared.config,
        freeze_plan=Frozen(
            patterns=prepared.config.freeze.patterns,
            names=tuple(d.name for d in freeze.decisions if d.name in prepared.plan.held),
        ),
        epoch=epoch,
        metrics=metrics,
        versions=versions(),
    )


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}{name}": tensor for name, tensor in tensors.items()}


def _of(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)
    }
