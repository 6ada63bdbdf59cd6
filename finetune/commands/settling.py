"""What is settled once for a whole run, before weights are read: data, stages, plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune.adapters import require_peft
from finetune.commands.resuming import Resumed
from finetune.config import Config, DataConfig
from finetune.continuing import Earlier, freezing_changes, kept_classes
from finetune.data.images import TrainVal
from finetune.data.levels import settled_levels
from finetune.data.loading import batch_sizes
from finetune.data.quick_check import Checked, quick_check
from finetune.data.sources import find_train_val
from finetune.defaults import in_words, resolve_defaults
from finetune.errors import ConfigError, OutputError, first_few
from finetune.files import expand_user
from finetune.model import ModelSpec, check_input_size
from finetune.named_recipes import expand_recipe
from finetune.planning import Plan, make_plan
from finetune.progress import Progress
from finetune.report.stages import listed_patterns
from finetune.runtime import make_deterministic, select_device, use_one_heap
from finetune.stages import stage_configs, with_stages
from finetune.weight_files import is_left_out


@dataclass(frozen=True)
class Settled:
    """What holds for every stage of a run.

    Attributes:
        given: Before anything in it was resolved.
        config: With stages in place of a recipe.
        stages: The config of each stage, plain; of a run without stages one.
        plans: Of each stage.
        kept: Classes whose rows of an earlier run's head are kept.
        chosen: What each ``auto`` became, in words.
    """

    given: Config
    config: Config
    stages: tuple[Config, ...]
    plans: tuple[Plan, ...]
    data: TrainVal
    checked: Checked
    device: torch.device
    kept: tuple[str, ...]
    chosen: tuple[str, ...]


def settle(config: Config, progress: Progress, resumed: Resumed | None = None) -> Settled:
    """The cheap checks first: folders, patterns and sizes fail before weights are read.

    Args:
        config: That of ``resumed``, where there is one.

    Raises:
        FinetuneError: any of its kinds.
    """
    given = config if resumed is None else resumed.given
    if config.adapt is not None:
        require_peft()
    use_one_heap()
    device = select_device(config.runtime.device)
    make_deterministic(device)
    data = _found(config, progress)
    _refuse_writing_among_classes(config, data)
    names = data.train.class_names
    config = _expanded(config, len(data.train), progress)
    stages = stage_configs(config)
    if not len(data.val):
        _refuse_without_validation(stages)
    plans = make_plans(stages, len(names), spec=None if resumed is None else resumed.spec)
    kept: tuple[str, ...] = ()
    if resumed is None:
        earlier = plans[0].spec.earlier
        kept = kept_classes(earlier, config.model.keep_head, names)
        _check_earlier(config, earlier, plans[0])
        _refuse_frozen_at_random(plans[0])
        if plans[0].spec.note:
            progress.say(plans[0].spec.note)
    else:
        resumed.refuse_other_network(plans[resumed.stage])
    for warning in dict.fromkeys(warning for plan in plans for warning in plan.freeze.warnings):
        progress.warn(warning)
    data, checked = _checked(data, config.data, progress)
    if resumed is not None:
        resumed.refuse_other_data(data, progress)
    if resumed is None:
        levels = levels_of(data, config.data, progress)
        config, stages = (
            _with_levels(config, levels),
            tuple(_with_levels(s, levels) for s in stages),
        )
        if levels != plans[0].spec.preprocessing.levels:
            spec = plans[0].spec.with_levels(levels)
            plans = tuple(replace(plan, spec=spec) for plan in plans)
    stages, chosen = _resolve_defaults(stages, plans, data)
    for number, stage in enumerate(stages):
        config = with_stages(stage, config.stages, number)
    sizes = batch_sizes(len(data.train), config.data.batch_size, join_last_of_one=True)
    _refuse_idle_accumulation(config, len(sizes))
    for plan in plans:
        check_input_size(plan.skeleton, plan.spec, batch_size=min(sizes))
    return Settled(given, config, stages, plans, data, checked, device, kept, chosen)


def _refuse_without_validation(stages: Sequence[Config]) -> None:
    """Refuse what goes by a validation figure, where nothing is held out."""
    for config in stages:
        if config.train.early_stopping is not None:
            key = "train.early_stopping"
        elif config.schedule.name == "plateau":
            key = "schedule.name: plateau"
        else:
            continue
        raise ConfigError(
            f"{key}: goes by a validation figure, and data.val_fraction 0 leaves no image to "
            "validate on; remove one of the two"
        )


def _refuse_writing_among_classes(config: Config, data: TrainVal) -> None:
    """A folder written there would be one more class from the next command on."""
    for key, folder in (("output_dir", config.output_dir), ("features.dir", config.features.dir)):
        written = None if folder is None else expand_user(str(folder)).resolve()
        for parent in data.parents:
            if written is not None and written.is_relative_to(parent.resolve()):
                raise OutputError(
                    f"{key}: {folder}: lies in {parent}, where every folder is read as a class; "
                    f"choose one elsewhere with --set {key}=FOLDER"
                )


def _expanded(config: Config, num_train: int, progress: Progress) -> Config:
    expanded = expand_recipe(config, num_train=num_train)
    if config.recipe:
        frozen = [_frozen(stage.freeze.patterns) for stage in expanded.stages]
        progress.say(
            f"recipe {config.recipe}: {', then '.join(frozen) or _frozen(expanded.freeze.patterns)}"
        )
    return expanded


def _frozen(patterns: Sequence[str]) -> str:
    return f"freeze.patterns {listed_patterns(patterns)}" if patterns else "nothing is frozen"


def make_plans(
    stages: Sequence[Config], num_classes: int, *, spec: ModelSpec | None = None
) -> tuple[Plan, ...]:
    """The plan of each stage.

    Args:
        spec: Of the network, where it was settled already.

    Raises:
        ConfigError: a pattern matches nothing; says in which stage.
        ModelError: as `make_plan`.
    """
    plans: list[Plan] = []
    for number, config in enumerate(stages, start=1):
        try:
            plans.append(make_plan(config, num_classes, spec=plans[0].spec if plans else spec))
        except ConfigError as error:
            if len(stages) == 1:
                raise
            raise ConfigError(f"stage {number} of {len(stages)}: {error}") from error
    return tuple(plans)


def _resolve_defaults(
    stages: Sequence[Config], plans: Sequence[Plan], data: TrainVal
) -> tuple[tuple[Config, ...], tuple[str, ...]]:
    """The stages with numbers for their ``auto``s, and what these became in words."""
    number, names = len(data.train), data.train.class_names
    all_resolved, chosen = [], []
    for at, (config, plan) in enumerate(zip(stages, plans, strict=True), start=1):
        resolved = resolve_defaults(config, plan, num_train=number, class_names=names)
        for line in in_words(config, resolved, plan, number):
            chosen.append(f"stage {at}: {line}" if len(stages) > 1 else line)
        all_resolved.append(resolved)
    return tuple(all_resolved), tuple(chosen)


def _refuse_idle_accumulation(config: Config, batches: int) -> None:
    if config.train.accumulate > batches:
        raise ConfigError(
            f"train.accumulate: {config.train.accumulate} batches make a step, but an epoch has "
            f"only {batches}; take at most {batches}, or a smaller data.batch_size"
        )


def _check_earlier(config: Config, earlier: Earlier | None, first: Plan) -> None:
    """A run that begins with another leaves that one as it is, and freezes the same unless it says
    otherwise."""
    if earlier is None:
        if config.freeze.may_differ:
            raise ConfigError(
                "freeze.may_differ: has no effect: model.weights names no run of finetune that is "
                "there, whose freezing this one's could differ from; remove the line"
            )
        return
    if earlier.path.resolve().parent == Path(config.output_dir).resolve():
        raise OutputError(
            f"output_dir: {config.output_dir}: holds {earlier.path.name}, which model.weights "
            "begins with; choose another with --set output_dir=FOLDER"
        )
    changes = freezing_of(first, earlier)
    if changes and not config.freeze.may_differ:
        raise ConfigError(
            f"freeze.patterns: {changes}. Set freeze.may_differ: true if that is meant, or freeze "
            "the same"
        )


def _refuse_frozen_at_random(first: Plan) -> None:
    spec = first.spec
    random = [name for name in sorted(first.freeze.frozen) if is_left_out(name, spec.leave_out)]
    if random:
        thawed = ", ".join(f'"!{pattern}"' for pattern in spec.leave_out)
        raise ConfigError(
            f"model.leave_out: {first_few(random)} would begin at random and stay so, as "
            f"freeze.patterns freezes it; let it train: add {thawed} to freeze.patterns"
        )


def freezing_of(plan: Plan, earlier: Earlier) -> str:
    """How what a plan holds differs from what an earlier run held; empty where it does not."""
    return freezing_changes(earlier, [d.name for d in plan.freeze.decisions], plan.held)


def find_data(config: Config, progress: Progress) -> tuple[TrainVal, Checked]:
    """The images that training would take, without what cannot be read."""
    return _checked(_found(config, progress), config.data, progress)


def levels_of(data: TrainVal, config: DataConfig, progress: Progress) -> int | None:
    """The level that is white in images with more than 8 bits a channel; as `settled_levels`."""
    return settled_levels(config.levels, (*data.train.paths, *data.val.paths), progress)


def _with_levels(config: Config, levels: int | None) -> Config:
    if levels is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"levels": levels})})


def _found(config: Config, progress: Progress) -> TrainVal:
    data = find_train_val(config.data, seed=config.seed, progress=progress)
    for note in data.notes:
        progress.say(note)
    for warning in data.warnings:
        progress.warn(warning)
    return data


def _checked(data: TrainVal, config: DataConfig, progress: Progress) -> tuple[TrainVal, Checked]:
    """The data without what cannot be read."""
    checked = quick_check(
        data.train,
        data.val,
        on_unreadable=config.on_unreadable,
        base=data.base,
        progress=progress,
    )
    train, val = checked.parts
    train = replace(train, balanced=config.balance == "sampler")
    return replace(data, train=train, val=val), checked
