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
from finetune.distributed.group import ONE_PROCESS, Group
from finetune.freezing.frozen_hashes import hash_tensor
from finetune.freezing.lora import named_plainly, plain_state
from finetune.results.train import StageSummary
from finetune.training.early_stopping import EarlyStopping
from finetune.training.ema import EMA
from finetune.training.epoch_record import Epoch
from finetune.training.loop import LoopState
from finetune.training.lr_schedulers import build_schedule, end_epoch
from finetune.training.optimizer_state import (
    OptimizerState,
    advance,
    load_optimizer_tensors,
    optimizer_tensors,
)
from finetune.training.prepare_stage import CarriedState, StageSetup
from finetune.training.resume import ResumePoint

_STATISTICS = "running_mean", "running_var"
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
        frozen: Name and SHA-256 of every tensor that all of them froze.
        best: Epoch whose weights are in ``best.pt``.
        optimizer_state: Optimizer state of the last of them; None if another process trained it.
        resumed_at: Positions at which earlier processes stopped.
    """

    stages: tuple[StageSummary, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    frozen: Mapping[str, str] | None = None
    best: Epoch | None = None
    optimizer_state: OptimizerState | None = None
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
            raise CheckpointError(
                f"damaged: {error!r}", kind="checkpoint.damaged", path=resume_point.path
            ) from error
        return cls(tuple(stages), tuple(before), frozen=record.unchanged)


class TrainState:
    """Train state of a stage between two optimizer steps; a run without stages is one stage.

    Args:
        start: Start of the run on this process's clock, shifted back by the time that earlier
            processes took.
        past: Results of the earlier stages.
        resume_point: Checkpoint to restore the state from.
        group: Processes that train the stage together.

    Attributes:
        loop: Model, optimizer, schedule, EMA, progress and metrics of the current epoch.
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
        group: Group = ONE_PROCESS,
    ) -> None:
        config, model = stage_setup.config, stage_setup.model
        self.stage_setup = stage_setup
        self._group = group
        self.past = past
        self.records: list[dict[str, Any]] = list(past.records)
        self.state_kept = 0
        self.resumed_at = past.resumed_at
        self.monitor = EarlyStopping(config.train)
        self._steps_per_epoch = steps_per_epoch
        self._parameters = list(named_plainly(model))
        optimizer = stage_setup.optimizer_of(config.optimizer)
        earlier = past.optimizer_state
        if earlier is not None:
            plain = {decision.name for decision in stage_setup.plan.freeze.decisions}
            self.state_kept = earlier.hand_over(optimizer, self._parameters, plain=plain)
            earlier.tensors.clear()  # free them: they are as large as the network
        self._has_adapters = bool(stage_setup.plan.adapters)
        self._state = model.state_dict()  # shares the model's tensors
        frozen = stage_setup.frozen_hashes.sha256
        self._changing = {k: v for k, v in self._state.items() if k not in frozen}
        decay = config.train.ema
        self.loop = LoopState(
            stage_setup.engine.trainable_part,
            optimizer,
            build_schedule(
                optimizer,
                config.schedule,
                epochs=config.train.epochs,
                steps_per_epoch=steps_per_epoch,
            ),
            num_classes=stage_setup.plan.num_classes,
            average=None if decay is None else EMA(self._changing, decay),
            progress=TrainProgress(stage=len(past.stages), epoch=len(past.records) + 1),
        )
        self._data = fingerprint_of(stage_setup.data)
        self._start = start
        if resume_point is not None:
            try:
                self.load_state_dict(resume_point.training)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise CheckpointError(
                    "damaged: its train state does not fit the network and optimizer",
                    kind="checkpoint.damaged",
                    path=resume_point.path,
                ) from error

    def add(self, epoch: Epoch) -> None:
        """Add an epoch that was trained and evaluated."""
        self.records.append(epoch.record())
        self._take_in(epoch)

    def _take_in(self, epoch: Epoch) -> None:
        if epoch.val is None:
            return
        self.monitor.see(epoch.val)
        end_epoch(self.loop.schedule, self.monitor.figure(epoch.val))

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context manager in which the model has the weights to evaluate and save."""
        average = self.loop.average
        return nullcontext() if average is None else average.in_place()

    def state_dict(self, *, evaluated: bool) -> Training:
        """Return the train state as a checkpoint stores it; its tensors are not copied.

        Args:
            evaluated: Whether the last of ``records`` belongs to the current epoch.
        """
        loop = self.loop
        optimizer, numbers = optimizer_tensors(loop.optimizer, self._parameters)
        tensors = _under(_OPTIMIZER, optimizer)
        if not evaluated:
            tensors |= _under(_METER, loop.meter.added_up(self._group).tensors())
        if loop.average is not None or self._has_adapters:
            tensors |= _under(_WEIGHTS, self._changing)
        # model_construct skips validation, which takes as long as a short epoch for many records.
        record = TrainingRecord.model_construct(
            given=self.stage_setup.run_config.given,
            position=loop.progress.after_epoch() if evaluated else replace(loop.progress),
            records=tuple(self.records),
            data=self._data,
            frozen=self.stage_setup.frozen_hashes.digest,
            threads=self.stage_setup.threads,
            processes=self._group.ranks.size,
            optimizer=numbers,
            elapsed_s=time.perf_counter() - self._start,
            resumed_at=self.resumed_at,
            stages=tuple(asdict(stage) for stage in self.past.stages),
            unchanged=None if self.past.frozen is None else dict(self.past.frozen),
            state_kept=self.state_kept,
        )
        return Training(record, tensors)

    def load_state_dict(self, training: Training) -> None:
        """Load the train state of a checkpoint; the model's tensors are already loaded.

        Raises:
            KeyError, RuntimeError, ValueError, TypeError: the state does not fit this stage.
        """
        record, tensors, loop = training.record, training.tensors, self.loop
        loop.progress = replace(record.position)
        self.records = list(record.records)
        self.resumed_at = (*record.resumed_at, str(record.position))
        self.state_kept = record.state_kept
        if loop.progress.batch and self._group.is_first:  # it has the batches of all processes
            loop.meter.load(_of(_METER, tensors))
        here = [Epoch.of(line) for line in self.records[len(self.past.records) :]]
        for epoch in here:
            advance(loop.schedule, self._steps_per_epoch)
            self._take_in(epoch)
        advance(loop.schedule, loop.progress.steps - len(here) * self._steps_per_epoch)
        optimizer = _of(_OPTIMIZER, tensors)
        load_optimizer_tensors(loop.optimizer, self._parameters, optimizer, record.optimizer)
        if loop.average is not None:
            loop.average.load(self._changing, loop.progress.steps)
        if loop.average is not None or self._has_adapters:
            weights = _of(_WEIGHTS, tensors)
            with torch.no_grad():
                for name, tensor in self._changing.items():
                    tensor.copy_(weights[name])

    def checkpoint(self, *, evaluated: bool) -> Checkpoint:
        """Return a checkpoint of the current state, which shares tensors that training changes.

        Args:
            evaluated: Whether the last of ``records`` belongs to the current epoch.

        Raises:
            NotFiniteError: a tensor contains a non-finite value.
        """
        training = self.state_dict(evaluated=evaluated)
        model = plain_state(self.stage_setup.model)
        if self.loop.average is not None:
            model = self._with(self.loop.average.tensors)
        frozen = self.stage_setup.frozen_hashes.sha256
        changing = {name: tensor for name, tensor in model.items() if name not in frozen}
        self._refuse_not_finite({**changing, **training.tensors})
        metadata = metadata_of(
            self.stage_setup,
            stage=self.loop.progress.stage,
            epoch=len(self.records),
            metrics=(self.records[-1]["val"] or {}) if evaluated else {},
        )
        return Checkpoint(model, metadata, training)

    def carried(self) -> CarriedState:
        """Return the weights of the last evaluated epoch, for the next stage."""
        with self.averaged():
            state = plain_state(self.stage_setup.model)
            kept = OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())
        copy_module_versions(state, kept)
        return CarriedState(kept, self.stage_setup.run_config)

    def optimizer_state(self) -> OptimizerState:
        """Return the optimizer state, for the next stage."""
        return OptimizerState.of(self.loop.optimizer, self._parameters)

    def agree(self) -> None:
        """Average the running statistics of norm layers over the processes, and compare the rest.

        Statistics differ between processes only with ``runtime.norms: apart``.

        Raises:
            FinetuneError: weights differ between processes.
        """
        if not self._group.are_several:
            return
        average = {} if self.loop.average is None else self.loop.average.tensors
        hashes = []
        for name, tensor in self._changing.items():
            for one in (tensor, average.get(name)):
                if one is not None and name.endswith(_STATISTICS):
                    self._group.add_up(one).div_(self._group.ranks.size)
            if tensor.is_floating_point():  # norm layers count micro-batches, each process its own
                hashes.append(hash_tensor(tensor))
        self._group.refuse_differences(weights=" ".join(hashes))

    def _refuse_not_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                lr = float(self.loop.optimizer.param_groups[0]["lr"])
                epoch, batch = self.loop.progress.epoch, self.loop.progress.batch
                raise NotFiniteError(name, epoch=epoch, batch=batch, lr=lr)

    def _with(self, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return the model's state dict with ``tensors`` replaced."""
        state = OrderedDict((name, tensors.get(name, t)) for name, t in self._state.items())
        copy_module_versions(self._state, state)
        return state


def metadata_of(
    stage_setup: StageSetup,
    *,
    stage: int,
    epoch: int,
    metrics: dict[str, float | int | None],
) -> Metadata:
    """Return the metadata of a checkpoint.

    Args:
        stage: Index of the stage, from 0.
        epoch: Number of the last evaluated epoch.
        metrics: Validation metrics of the checkpoint's weights.
    """
    spec, freeze = stage_setup.plan.spec, stage_setup.plan.freeze
    return Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=stage_setup.data.train.class_names,
        preprocessing=spec.preprocessing,
        config=stage_setup.run_config.saved_at(stage),
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
