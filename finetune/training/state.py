"""Train state: everything that changes while a stage trains; saved in checkpoints."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import Checkpoint, Frozen, Metadata, Training, TrainingRecord
from finetune.checkpoints.safe_load import copy_module_versions
from finetune.checkpoints.train_progress import TrainProgress
from finetune.core.device import versions
from finetune.core.errors import CheckpointError, NotFiniteError
from finetune.data.fingerprint import fingerprint_of
from finetune.freezing.lora import named_plainly, plain_state
from finetune.results.train import StageSummary
from finetune.training.early_stopping import EarlyStopping
from finetune.training.ema import EMA
from finetune.training.epoch_record import Epoch
from finetune.training.lr_schedulers import build_schedule, end_epoch
from finetune.training.metrics import Meter
from finetune.training.optimizer_state import (
    OptimizerState,
    advance,
    load_optimizer_tensors,
    optimizer_tensors,
)
from finetune.training.prepare_stage import CarriedState, StageSetup
from finetune.training.resume import ResumePoint

_OPTIMIZER, _METER, _WEIGHTS = "optimizer/", "meter/", "weights/"
"""Key prefixes of the tensors in a checkpoint's `Training`.

``weights/`` is used only if the checkpoint's model tensors are EMA averages or have adapters merged
into them.
"""


@dataclass(frozen=True)
class EarlierStages:
    """Results of the earlier stages of a run; empty for the first stage.

    Attributes:
        stages: Summary of each earlier stage.
        records: Records of their epochs.
        unchanged: Name and SHA-256 of every tensor that none of them changed after loading.
        best: Epoch whose weights are in ``best.pt``.
        memory: Optimizer state of the last of them; None if another process trained it.
        resumed_at: Positions at which earlier processes stopped.
    """

    stages: tuple[StageSummary, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    unchanged: Mapping[str, str] | None = None
    best: Epoch | None = None
    memory: OptimizerState | None = None
    resumed_at: tuple[str, ...] = ()

    @classmethod
    def of(cls, resume_point: ResumePoint) -> EarlierStages:
        """Return the earlier stages recorded in a checkpoint.

        Raises:
            CheckpointError: the record is invalid.
        """
        record = resume_point.training.record
        before = [line for line in record.records if line.get("stage", 1) <= resume_point.stage]
        try:
            stages = [StageSummary.of(values) for values in record.stages]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{resume_point.path}: damaged: {error!r}") from error
        return cls(tuple(stages), tuple(before), record.unchanged)


class TrainState:
    """Train state of a stage between two optimizer steps; a run without stages is one stage.

    Args:
        start: Start of the run on this process's clock, shifted back by the time that earlier
            processes took.
        past: Results of the earlier stages.
        resume_point: Checkpoint to restore the state from.

    Attributes:
        records: Record of each evaluated epoch, as in ``metrics.jsonl``.
        resumed_at: Positions at which earlier processes stopped.
        state_kept: Number of parameters whose optimizer state was carried over from the previous
            stage.

    Raises:
        CheckpointError: the state in ``resume_point`` does not fit this stage.
    """

    def __init__(
        self,
        stage_setup: StageSetup,
        *,
        steps_per_epoch: int,
        start: float,
        past: EarlierStages,
        resume_point: ResumePoint | None = None,
    ) -> None:
        config, model = stage_setup.config, stage_setup.model
        self.stage_setup = stage_setup
        self.past = past
        self.position = TrainProgress(stage=len(past.stages), epoch=len(past.records) + 1)
        self.records: list[dict[str, Any]] = list(past.records)
        self.state_kept = 0
        self.resumed_at = past.resumed_at
        self.meter = Meter(stage_setup.plan.num_classes, stage_setup.engine.device)
        self.monitor = EarlyStopping(config.train)
        self.optimizer = stage_setup.optimizer_of(config.optimizer)
        self._parameters = list(named_plainly(model))
        if past.memory is not None:
            plain = {decision.name for decision in stage_setup.plan.freeze.decisions}
            self.state_kept = past.memory.hand_over(self.optimizer, self._parameters, plain=plain)
            past.memory.tensors.clear()  # free them: they are as large as the network
        self.schedule = build_schedule(
            self.optimizer,
            config.schedule,
            epochs=config.train.epochs,
            steps_per_epoch=steps_per_epoch,
        )
        self._has_adapters = bool(stage_setup.plan.adapters)
        self._state = model.state_dict()  # shares the model's tensors
        frozen = stage_setup.frozen_hashes.sha256
        self._changing = {k: v for k, v in self._state.items() if k not in frozen}
        self.average: EMA | None = None
        if config.train.ema is not None:
            self.average = EMA(self._changing, config.train.ema)
        self._data = fingerprint_of(stage_setup.data)
        self._start = start
        if resume_point is not None:
            try:
                self._go_on(resume_point.training, steps_per_epoch)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{resume_point.path}: damaged: what it says of the training does not fit"
                ) from error

    def add(self, epoch: Epoch) -> None:
        """Add an epoch that was trained and evaluated."""
        self.records.append(epoch.record())
        self._take_in(epoch)

    def _take_in(self, epoch: Epoch) -> None:
        if epoch.val is None:
            return
        self.monitor.see(epoch.val)
        end_epoch(self.schedule, self.monitor.figure(epoch.val))

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context manager in which the model has the weights to evaluate and save."""
        return nullcontext() if self.average is None else self.average.in_place()

    def checkpoint(self, *, evaluated: bool) -> Checkpoint:
        """Return a checkpoint of the current state, which shares tensors that training changes.

        Args:
            evaluated: Whether the last of ``records`` belongs to the current epoch.

        Raises:
            NotFiniteError: a tensor contains a non-finite value.
        """
        remembered, numbers = optimizer_tensors(self.optimizer, self._parameters)
        tensors = _under(_OPTIMIZER, remembered)
        if not evaluated:
            tensors |= _under(_METER, self.meter.tensors())
        model = plain_state(self.stage_setup.model)
        if self.average is not None or self._has_adapters:
            tensors |= _under(_WEIGHTS, self._changing)
        if self.average is not None:
            model = self._with(self.average.tensors)
        changing = {
            k: v for k, v in model.items() if k not in self.stage_setup.frozen_hashes.sha256
        }
        self._refuse_not_finite({**changing, **tensors})
        # model_construct skips validation, which takes as long as a short epoch for many records.
        record = TrainingRecord.model_construct(
            given=self.stage_setup.given,
            position=self.position.after_epoch() if evaluated else replace(self.position),
            records=tuple(self.records),
            data=self._data,
            frozen=self.stage_setup.frozen_hashes.digest,
            threads=self.stage_setup.threads,
            optimizer=numbers,
            elapsed_s=time.perf_counter() - self._start,
            resumed_at=self.resumed_at,
            stages=tuple(asdict(stage) for stage in self.past.stages),
            unchanged=None if self.past.unchanged is None else dict(self.past.unchanged),
            state_kept=self.state_kept,
        )
        metadata = metadata_of(
            self.stage_setup,
            epoch=len(self.records),
            metrics=(self.records[-1]["val"] or {}) if evaluated else {},
        )
        return Checkpoint(model, metadata, Training(record, tensors))

    def carried(self) -> CarriedState:
        """Return the weights of the last evaluated epoch, for the next stage."""
        with self.averaged():
            state = plain_state(self.stage_setup.model)
            kept = OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())
        copy_module_versions(state, kept)
        return CarriedState(kept, self.stage_setup.config.stages)

    def memory(self) -> OptimizerState:
        """Return the optimizer state."""
        return OptimizerState.of(self.optimizer, self._parameters)

    def _refuse_not_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                lr = float(self.optimizer.param_groups[0]["lr"])
                epoch, batch = self.position.epoch, self.position.batch
                raise NotFiniteError(name, epoch=epoch, batch=batch, lr=lr)

    def _with(self, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return the model's state dict with ``tensors`` replaced."""
        state = OrderedDict((name, tensors.get(name, t)) for name, t in self._state.items())
        copy_module_versions(self._state, state)
        return state

    def _go_on(self, training: Training, steps_per_epoch: int) -> None:
        """Restore the state saved by an earlier process; the model's tensors are already loaded."""
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
        load_optimizer_tensors(
            self.optimizer, self._parameters, _of(_OPTIMIZER, tensors), record.optimizer
        )
        if self.average is not None:
            self.average.load(self._changing, self.position.steps)
        if self.average is not None or self._has_adapters:
            weights = _of(_WEIGHTS, tensors)
            with torch.no_grad():
                for name, tensor in self._changing.items():
                    tensor.copy_(weights[name])


def metadata_of(
    stage_setup: StageSetup, *, epoch: int, metrics: dict[str, float | int | None]
) -> Metadata:
    """Return the metadata of a checkpoint.

    Args:
        epoch: Number of the last evaluated epoch.
        metrics: Validation metrics of the checkpoint's weights.
    """
    spec, freeze = stage_setup.plan.spec, stage_setup.plan.freeze
    return Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=stage_setup.data.train.class_names,
        preprocessing=spec.preprocessing,
        config=stage_setup.config,
        freeze_plan=Frozen(
            patterns=stage_setup.config.freeze.patterns,
            names=tuple(d.name for d in freeze.decisions if d.name in stage_setup.plan.frozen),
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
