"""``train --resume``: the checkpoint to go on from, and whether it is the same training still."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from finetune import run_folder
from finetune.checkpoint import Checkpoint, Training, TrainingRecord, read_checkpoint
from finetune.config import Config
from finetune.config_problems import problems_of
from finetune.config_section import AUTO
from finetune.data.fingerprint import differences, fingerprint_of
from finetune.data.images import TrainVal
from finetune.errors import CheckpointError, ConfigError, DataError, ResultError, first_few
from finetune.files import exists
from finetune.model import ModelSpec
from finetune.planning import Plan
from finetune.progress import Progress
from finetune.proof import Proof
from finetune.runtime import versions
from finetune.stages import stage_configs

_MAY_CHANGE = {
    "train.epochs",
    "train.checkpoint_minutes",
    "data.workers",
    "features.dir",
    "output_dir",
}
"""Keys that decide nothing but how long, where and how fast."""

_JUDGED_BY_WHAT_THEY_COME_TO = {"freeze.patterns", "data.root"}

_MOST_LISTED = 8

_Path = tuple[str | int, ...]

_EPOCHS: _Path = ("train", "epochs")


@dataclass(frozen=True)
class Resumed:
    """A run that was stopped.

    Attributes:
        path: Of the checkpoint.
        config: Resolved as the run resolved it, with what may change.
        given: As the run was given it, with the same changes.
    """

    path: Path
    checkpoint: Checkpoint
    training: Training
    config: Config
    given: Config

    @property
    def stage(self) -> int:
        """Of a run in several, from 0."""
        return self.training.record.position.stage

    @property
    def spec(self) -> ModelSpec:
        """The network, as it was built; nothing else that it came from need be there any more."""
        metadata = self.checkpoint.metadata
        return ModelSpec(
            metadata.model_name,
            self.config.model.weights,
            metadata.build_flags,
            metadata.preprocessing,
        )

    def refuse_other_network(self, plan: Plan) -> None:
        """What is frozen of the network must be the same.

        Raises:
            ConfigError: shows what differs.
        """
        names = set(self.checkpoint.metadata.freeze_plan.names)
        shown = _listed("frozen in the run would train now", names - plan.held)
        shown += _listed("trained in the run would be frozen now", plan.held - names)
        if shown:
            raise ConfigError(_refusal(self.path.parent, "another network", shown))

    def refuse_other_data(self, data: TrainVal, progress: Progress) -> None:
        """The images must be the same, and their classes; a warning where they may be others.

        Raises:
            DataError: shows what differs.
        """
        before, now = self.checkpoint.metadata.class_names, data.train.class_names
        shown = _listed("class of the run is absent", {*before} - {*now})
        shown += _listed("class is new", {*now} - {*before})
        noted, found = self.training.record.data, fingerprint_of(data)
        shown = shown or differences(noted, found)
        if shown:
            raise DataError(_refusal(self.path.parent, "other data", shown))
        if noted.times and noted.times != found.times:
            progress.warn(
                "images were written at another time than those that the run began with, though "
                "in the same sizes: the run goes on; if they show something else, begin a new one "
                "with another output_dir"
            )

    def fill(self, model: nn.Module) -> None:
        """Give the network the tensors that it had.

        Raises:
            CheckpointError: they do not fit.
        """
        try:
            model.load_state_dict(self.checkpoint.model)
        except RuntimeError as error:
            raise CheckpointError(f"{self.path}: damaged: its tensors do not fit") from error

    def refuse_other_frozen(self, proof: Proof) -> None:
        """What is frozen must be what it was when the run began.

        Raises:
            ResultError: it is not.
        """
        if proof.digest != self.training.record.frozen:
            raise ResultError(
                f"{self.path}: frozen tensors are not those that the run began with. Do not use "
                "this result; this must never happen, please report it."
            )


def find_resumed(given: Config, progress: Progress) -> Resumed:
    """The newest whole checkpoint in ``output_dir``, with the config to go on by.

    Raises:
        OutputError: no run is there.
        CheckpointError: none of its checkpoints can be gone on from.
        ConfigError: the config asks for another training; shows what differs.
    """
    folder = Path(given.output_dir)
    run_folder.check_is_run(folder)
    path, checkpoint = _newest(folder, progress)
    training = checkpoint.training
    if training is None:
        raise CheckpointError(
            f"{path}: holds no state of the training, as an older finetune wrote it, so that the "
            "run cannot go on; train it again with --overwrite"
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
            f"{_dotted(key)}: {before} in the run, {now} now"
            for key, (before, now) in foreign.items()
        ]
        raise ConfigError(_refusal(folder, "another config", shown))
    new = {key: now for key, (_, now) in changed.items()}
    config = _with(saved, _of_stages(saved, new))
    done = _is_done(config, record)
    more = "all its epochs are done; more come with --set train.epochs=N"
    progress.say(f"going on from {path}: {more if done else record.position}")
    _say_what_may_differ(checkpoint, training, progress)
    given = _with(record.given, _beside_recipe(record.given, new))
    return Resumed(path, checkpoint, training, config, given)


def command(folder: str | Path) -> str:
    """What a shell is told to go on with a run."""
    return f"finetune train --resume {shlex.quote(str(folder))}"


def _newest(folder: Path, progress: Progress) -> tuple[Path, Checkpoint]:
    found = [folder / name for name in (run_folder.LAST, run_folder.PREVIOUS)]
    there = [path for path in found if exists(path)]
    for path in there:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            progress.warn(str(error))
            continue
        return path, checkpoint
    why = (
        f"neither {' nor '.join(path.name for path in there)} can be read"
        if len(there) > 1
        else f"{there[0].name} cannot be read"
        if there
        else "it was ended before it wrote its first one"
    )
    raise CheckpointError(
        f"{folder}: holds no checkpoint to go on from: {why}. Begin again: the same command with "
        "--overwrite in place of --resume"
    )


def _is_done(config: Config, record: TrainingRecord) -> bool:
    """Whether no epoch is left.

    Raises:
        ConfigError: more have begun than there are.
    """
    position, stages = record.position, stage_configs(config)
    before = sum(past.get("stage", 1) <= position.stage for past in record.records)
    begun = position.epoch - before - (0 if position.batch else 1)
    epochs = stages[position.stage].train.epochs
    if epochs < begun:
        key = f"stages.{position.stage}.epochs" if config.stages else "train.epochs"
        raise ConfigError(
            f"{key}: {epochs}, but {begun} have begun in {config.output_dir}; give at least as many"
        )
    return not position.batch and epochs == begun and position.stage + 1 == len(stages)


def _of_stages(saved: Config, values: Mapping[_Path, Any]) -> dict[_Path, Any]:
    """The same, with the epochs of a recipe that became stages as those of the last stage.

    Raises:
        ConfigError: too few of them are left for it.
    """
    epochs = values.get(_EPOCHS)
    if not saved.stages or epochs is None:
        return dict(values)
    if epochs == AUTO:
        raise ConfigError("train.epochs: auto chose for the run when it began; give it a number")
    *earlier, _ = (stage.train.epochs for stage in stage_configs(saved))
    if epochs <= sum(earlier):
        raise ConfigError(
            f"train.epochs: {epochs}, but the stages before the last have {sum(earlier)} of them; "
            f"give at least {sum(earlier) + 1}"
        )
    rest = {key: value for key, value in values.items() if key != _EPOCHS}
    return rest | {("stages", len(earlier), "epochs"): epochs - sum(earlier)}


def _beside_recipe(given: Config, values: Mapping[_Path, Any]) -> dict[_Path, Any]:
    """Those that a config can state; what its recipe stands for is for the saved config alone."""
    return {
        key: value
        for key, value in values.items()
        if not (given.recipe and (key[0] == "stages" or key == ("freeze", "patterns")))
    }


def _may_change(key: _Path, values: tuple[Any, Any], stage: int) -> bool:
    """Whether a run that stands in a stage can go on with another value."""
    match key:
        case ("stages", int(number), "epochs"):
            return number >= stage
        case ("stages", int(number), *_):
            # The config in the folder may be ahead of the checkpoint: a stage had just begun.
            return number > stage and values[0] == AUTO
    return _dotted(key) in _MAY_CHANGE | _JUDGED_BY_WHAT_THEY_COME_TO


def _dotted(key: _Path) -> str:
    return ".".join(map(str, key))


def _say_what_may_differ(checkpoint: Checkpoint, training: Training, progress: Progress) -> None:
    record, before = training.record, checkpoint.metadata.versions
    others = [
        f"{name} {before.get(name)}, now {now}"
        for name, now in versions().items()
        if before.get(name) != now
    ]
    if record.threads != torch.get_num_threads():
        others.append(f"{record.threads} threads, now {torch.get_num_threads()}")
    if others:
        progress.warn(
            f"begun with {'; '.join(others)}: the run goes on, but its last digits may be others "
            "than without the stop"
        )


def _changes(before: Config, now: Config) -> dict[_Path, tuple[Any, Any]]:
    """Keys with different values, and both of them."""
    one, two = _leaves(before.plain()), _leaves(now.plain())
    return {
        key: (one.get(key), two.get(key))
        for key in [*one, *(two.keys() - one.keys())]
        if one.get(key) != two.get(key)
    }


def _leaves(values: Mapping[Any, Any], path: _Path = ()) -> dict[_Path, Any]:
    leaves: dict[_Path, Any] = {}
    for key, value in values.items():
        inner = (*path, key)
        if inner == ("tune",):  # for `finetune tune` alone
            continue
        if inner == ("stages",):
            value = dict(enumerate(value))
        leaves |= _leaves(value, inner) if isinstance(value, Mapping) else {inner: value}
    return leaves


def _with(config: Config, values: Mapping[_Path, Any]) -> Config:
    """The config with other values at some keys; None for the default.

    Raises:
        ConfigError: they do not fit the others.
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
        shown = [f"{_dotted(problem.path)}: {problem.text}" for problem in problems_of(error)]
        folder = Path(config.output_dir)
        raise ConfigError(_refusal(folder, "another config", shown)) from error


def _listed(what: str, names: Collection[str]) -> list[str]:
    return [f"{what}: {first_few(sorted(names))}"] if names else []


def _refusal(folder: Path, what: str, shown: Sequence[str]) -> str:
    lines = [*shown[:_MOST_LISTED]]
    if len(shown) > _MOST_LISTED:
        lines.append(f"and {len(shown) - _MOST_LISTED} more differences")
    listed = "".join(f"\n  {line}" for line in lines) + "\n" if len(lines) > 1 else f" {lines[0]}. "
    return (
        f"{folder}: was trained with {what}, and cannot go on with this:{listed}"
        "Take that back, or begin a new run with another output_dir"
    )
