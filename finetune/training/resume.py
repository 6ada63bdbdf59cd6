"""``train --resume``: find the checkpoint, and check that config, network and data are the same."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Checkpoint, Training, TrainingRecord, read_checkpoint
from finetune.config.base import AUTO
from finetune.config.error_messages import problems_of
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config
from finetune.config.stages import planned_stages, stage_configs
from finetune.core.device import versions
from finetune.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FinetuneError,
    Problem,
    ResultError,
    worded,
)
from finetune.core.files import exists
from finetune.core.reporter import Reporter
from finetune.core.text import first_few, plural
from finetune.data.fingerprint import differences, fingerprint_of
from finetune.data.images import TrainVal
from finetune.distributed.group import group
from finetune.freezing.frozen_hashes import FrozenHashes
from finetune.freezing.plan import Plan
from finetune.models.build import ModelSpec

_MAY_CHANGE = {
    "train.epochs",
    "train.checkpoint_minutes",
    "data.workers",
    "features.dir",
    "output_dir",
}
"""Config keys that affect only duration, place and speed of a run."""

_JUDGED_BY_WHAT_THEY_COME_TO = {"freeze.patterns", "data.root"}

_MOST_LISTED = 8

_Path = tuple[str | int, ...]

_EPOCHS: _Path = ("train", "epochs")


@dataclass(frozen=True)
class ResumePoint:
    """Checkpoint to resume a run from, and the config to resume it with.

    Attributes:
        path: Path of the checkpoint.
        training: Train state in the checkpoint.
        config: Config as resolved by the original run, with the permitted changes.
        given: Config as given to the original run, with the same changes.
    """

    path: Path
    checkpoint: Checkpoint
    training: Training
    config: Config
    given: Config

    @property
    def stage(self) -> int:
        """Index of the stage to resume, from 0."""
        return self.training.record.position.stage

    @property
    def spec(self) -> ModelSpec:
        """Spec of the network; the source of its initial weights need not exist any more."""
        metadata = self.checkpoint.metadata
        return ModelSpec(
            metadata.model_name,
            self.config.model.weights,
            metadata.build_flags,
            metadata.preprocessing,
        )

    def refuse_other_network(self, plan: Plan) -> None:
        """Check that the same parameters are frozen as in the original run.

        Raises:
            ConfigError: they differ; the message lists the differences.
        """
        names = set(self.checkpoint.metadata.freeze_plan.names)
        shown = _listed(
            "config.network_changed", "frozen in the run, but trainable now", names - plan.frozen
        )
        shown += _listed(
            "config.network_changed", "trainable in the run, but frozen now", plan.frozen - names
        )
        if shown:
            raise _refusal(
                ConfigError,
                "config.network_changed",
                self.path.parent,
                "the network differs",
                shown,
            )

    def refuse_other_data(self, data: TrainVal, reporter: Reporter) -> None:
        """Check that images and classes are the same; warn if the images may have changed.

        Raises:
            DataError: they differ; the message lists the differences.
        """
        before, now = self.checkpoint.metadata.class_names, data.train.class_names
        shown = _listed("data.changed", "classes of the run are missing", {*before} - {*now})
        shown += _listed("data.changed", "new classes", {*now} - {*before})
        noted, found = self.training.record.data, fingerprint_of(data)
        shown = shown or [Problem("data.changed", one) for one in differences(noted, found)]
        if shown:
            raise _refusal(DataError, "data.changed", self.path.parent, "the data differs", shown)
        if noted.times and noted.times != found.times:
            reporter.warn(
                "images have other modification times than at the start of the run, but the same "
                "sizes: resuming; if their content changed, start a new run with another output_dir"
            )

    def fill(self, model: nn.Module) -> None:
        """Load the checkpoint's tensors into the network.

        Raises:
            CheckpointError: the tensors do not fit.
        """
        try:
            model.load_state_dict(self.checkpoint.model)
        except RuntimeError as error:
            raise CheckpointError(
                "damaged: its tensors do not fit", kind="checkpoint.damaged", path=self.path
            ) from error

    def refuse_other_frozen(self, frozen_hashes: FrozenHashes) -> None:
        """Check that the frozen tensors have the hashes recorded when the run started.

        Raises:
            ResultError: the hashes differ.
        """
        if frozen_hashes.digest != self.training.record.frozen:
            raise ResultError(
                "frozen tensors differ from those at the start of the run",
                kind="result.frozen_changed",
                path=self.path,
                to_do="Do not use this result. This is a bug in finetune; please report it",
            )


def find_resume_point(given: Config, reporter: Reporter) -> ResumePoint:
    """Return the newest intact checkpoint in ``output_dir``, with the config to resume with.

    Raises:
        OutputError: ``output_dir`` contains no run.
        CheckpointError: none of its checkpoints can be resumed from.
        ConfigError: the config differs from the run's; the message lists the differences.
    """
    folder = Path(given.output_dir)
    run_dir.check_is_run(folder)
    path, checkpoint = _newest(folder, reporter)
    training = checkpoint.training
    if training is None:
        raise CheckpointError(
            "contains no train state (written by an older finetune), so the run cannot be resumed",
            kind="checkpoint.no_train_state",
            path=path,
            to_do="start over with --overwrite",
        )
    record, saved = training.record, checkpoint.metadata.config
    changed = min((_changes(record.given, given), _changes(saved, given)), key=len)
    foreign = {
        key: values
        for key, values in changed.items()
        if not _may_change(key, values, record.position.stage)
    }
    if foreign:
        shown = [
            Problem("config.changed", f"{before} in the run, {now} now", key=_dotted(key))
            for key, (before, now) in foreign.items()
        ]
        raise _refusal(ConfigError, "config.changed", folder, "the config differs", shown)
    new = {key: now for key, (_, now) in changed.items()}
    config = _with(saved, _of_stages(saved, new))
    done = _is_done(config, record)
    more = "all epochs are done; add more with --set train.epochs=N"
    reporter.say(f"resuming from {path}: {more if done else record.position}")
    _say_what_may_differ(checkpoint, training, reporter)
    given = _with(record.given, _beside_recipe(record.given, new))
    return ResumePoint(path, checkpoint, training, config, given)


def resume_command(folder: str | Path) -> str:
    """Return the shell command that resumes a run."""
    return f"finetune train --resume {shlex.quote(str(folder))}"


def _newest(folder: Path, reporter: Reporter) -> tuple[Path, Checkpoint]:
    found = [folder / name for name in (run_dir.LAST, run_dir.PREVIOUS)]
    there = [path for path in found if exists(path)]
    for path in there:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            reporter.warn(str(error))
            continue
        return path, checkpoint
    why = (
        f"neither {' nor '.join(path.name for path in there)} can be read"
        if len(there) > 1
        else f"{there[0].name} cannot be read"
        if there
        else "the run ended before its first checkpoint"
    )
    raise CheckpointError(
        f"no usable checkpoint to resume from: {why}",
        kind="checkpoint.none_usable",
        path=folder,
        to_do="Start over with the same command and --overwrite instead of --resume",
    )


def _is_done(config: Config, record: TrainingRecord) -> bool:
    """Return whether all epochs are done.

    Raises:
        ConfigError: the config has fewer epochs than have already started.
    """
    position, stages = record.position, planned_stages(config)
    before = sum(past.get("stage", 1) <= position.stage for past in record.records)
    begun = position.epoch - before - (0 if position.batch else 1)
    epochs = stages[position.stage].train.epochs
    if epochs < begun:
        key = f"stages.{position.stage}.epochs" if config.stages else "train.epochs"
        raise ConfigError(
            f"{epochs} is less than the {begun} epochs already started in {config.output_dir}",
            kind="config.invalid_value",
            key=key,
            to_do=f"set at least {begun}",
        )
    return not position.batch and epochs == begun and position.stage + 1 == len(stages)


def _of_stages(saved: PlannedConfig, values: Mapping[_Path, Any]) -> dict[_Path, Any]:
    """Replace a change of ``train.epochs`` by one of the last stage, if the run has stages.

    Raises:
        ConfigError: no epochs are left for the last stage.
    """
    epochs = values.get(_EPOCHS)
    if epochs == AUTO:
        raise ConfigError(
            "auto was resolved when the run started",
            kind="config.invalid_value",
            key="train.epochs",
            to_do="set a number",
        )
    if not saved.stages or epochs is None:
        return dict(values)
    *earlier, _ = (stage.train.epochs for stage in stage_configs(saved))
    if epochs <= sum(earlier):
        raise ConfigError(
            f"{epochs} leaves no epochs for the last stage; the earlier stages have {sum(earlier)}",
            kind="config.invalid_value",
            key="train.epochs",
            to_do=f"set at least {sum(earlier) + 1}",
        )
    rest = {key: value for key, value in values.items() if key != _EPOCHS}
    return rest | {("stages", len(earlier), "epochs"): epochs - sum(earlier)}


def _beside_recipe(given: Config, values: Mapping[_Path, Any]) -> dict[_Path, Any]:
    """Return the changes without the keys that the config's recipe sets, if it has one."""
    return {
        key: value
        for key, value in values.items()
        if not (given.recipe and (key[0] == "stages" or key == ("freeze", "patterns")))
    }


def _may_change(key: _Path, values: tuple[Any, Any], stage: int) -> bool:
    """Return whether a run can be resumed in a stage with another value of a key."""
    match key:
        case ("stages", int(number), "epochs"):
            return number >= stage
        case ("stages", int(number), *_):
            # The config in the run directory may be newer than the checkpoint: a stage had just
            # started.
            return number > stage and values[0] == AUTO
    return key[0] == "track" or _dotted(key) in _MAY_CHANGE | _JUDGED_BY_WHAT_THEY_COME_TO


def _dotted(key: _Path) -> str:
    return ".".join(map(str, key))


def _say_what_may_differ(checkpoint: Checkpoint, training: Training, reporter: Reporter) -> None:
    record, before = training.record, checkpoint.metadata.versions
    others = [
        f"{name} {before.get(name)}, now {now}"
        for name, now in versions().items()
        if before.get(name) != now
    ]
    if record.threads != torch.get_num_threads():
        others.append(f"{record.threads} threads, now {torch.get_num_threads()}")
    if record.processes != group().ranks.size:
        others.append(f"{plural(record.processes, 'process')}, now {group().ranks.size}")
    if others:
        reporter.warn(
            f"resuming a run that started with {'; '.join(others)}: results may differ in the last "
            "digits from an uninterrupted run"
        )


def _changes(before: Config, now: Config) -> dict[_Path, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values."""
    one, two = _leaves(before.plain()), _leaves(now.plain())
    return {
        key: (one.get(key), two.get(key))
        for key in [*one, *(two.keys() - one.keys())]
        if one.get(key) != two.get(key) and not _is_new_default(key, one.get(key), two.get(key))
    }


def _is_new_default(key: _Path, before: Any, now: Any) -> bool:
    """Return whether a key differs because a default of the section ``optimizer`` changed.

    ``weight_decay`` beside ``lr: auto`` and ``name`` became ``auto``; earlier versions wrote the
    values that they then stood for.
    """
    if key[-2:-1] != ("optimizer",):
        return False
    earlier = {
        "weight_decay": (AUTO, (0.0, 0.01)),
        "name": (AUTO, ("sgd",)),
        "momentum": (None, (0.9,)),
    }
    default, values = earlier.get(str(key[-1]), (None, ()))
    return now == default and before in values


def _leaves(values: Mapping[Any, Any], path: _Path = ()) -> dict[_Path, Any]:
    leaves: dict[_Path, Any] = {}
    for key, value in values.items():
        inner = (*path, key)
        if inner == ("tune",):  # used by `finetune tune` only
            continue
        if inner == ("stages",):
            value = dict(enumerate(value))
        leaves |= _leaves(value, inner) if isinstance(value, Mapping) else {inner: value}
    return leaves


def _with(config: Config, values: Mapping[_Path, Any]) -> Config:
    """Return the config with some values replaced; None restores the default.

    Raises:
        ConfigError: the resulting config is invalid.
    """
    whole = config.plain()
    for path, value in values.items():
        section: Any = whole
        for part in path[:-1]:
            section = section[part] if isinstance(part, int) else section.setdefault(part, {})
        section[path[-1]] = value
        if value is None:
            del section[path[-1]]
    try:
        return Config.model_validate(whole)
    except ValidationError as error:
        shown = [
            Problem(one.kind, one.what, one.to_do or None, key=_dotted(one.path))
            for one in problems_of(error)
        ]
        folder = Path(config.output_dir)
        raise _refusal(
            ConfigError, "config.changed", folder, "the config differs", shown
        ) from error


def _listed(kind: str, what: str, names: Collection[str]) -> list[Problem]:
    return [Problem(kind, f"{what}: {first_few(sorted(names))}")] if names else []


def _refusal(
    error: type[FinetuneError], kind: str, folder: Path, what: str, differences: Sequence[Problem]
) -> FinetuneError:
    """Return the error for a run that cannot be resumed because something changed."""
    lines = [worded(one) for one in differences[:_MOST_LISTED]]
    if len(differences) > _MOST_LISTED:
        lines.append(f"and {len(differences) - _MOST_LISTED} more differences")
    listed = "".join(f"\n  {line}" for line in lines) if len(lines) > 1 else f" {lines[0]}"
    refused = error(
        f"cannot be resumed, since {what}:{listed}",
        kind=kind,
        path=folder,
        to_do="Revert the change, or start a new run with another output_dir",
    )
    return refused.at(problems=tuple(differences))
