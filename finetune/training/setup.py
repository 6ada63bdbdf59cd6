"""Setup of a run before any weights are read: data, stages and plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from finetune.checkpoints.finetuned_source import SourceRun, freezing_changes, kept_classes
from finetune.config.base import AUTO
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, DataConfig
from finetune.config.stages import RunConfig, stage_configs
from finetune.core.device import make_deterministic, own_device, select_device
from finetune.core.errors import ConfigError, OutputError
from finetune.core.files import expand_user
from finetune.core.memory import use_one_heap
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import first_few, listed_patterns
from finetune.data.checks.preflight import PreflightResult, preflight_check, sizes_of
from finetune.data.images import Images, TrainVal
from finetune.data.levels import settled_levels
from finetune.data.loading.sampler import batch_sizes
from finetune.data.sources.open import find_train_val
from finetune.distributed.group import group
from finetune.freezing.lora import require_peft
from finetune.freezing.plan import Plan, make_plan
from finetune.models.build import ModelSpec, check_input_size
from finetune.models.weight_files import is_left_out
from finetune.recipes.auto import in_words, plan_config
from finetune.recipes.named import expand_recipe
from finetune.training.resume import ResumePoint
from finetune.training.trackers import require_trackers

_MEASURED = 100
"""Number of images whose sizes are read."""


@dataclass(frozen=True)
class RunSetup:
    """Setup shared by all stages of a run.

    Attributes:
        run_config: Config as given, and the planned config of each stage.
        plans: Plan of each stage.
        checked: Result of the preflight check.
        kept: Classes whose head rows are kept from an earlier run.
        chosen: Description of the value chosen for each ``auto``.
        auto_rates: Keys among ``lr`` and ``weight_decay`` of the section ``optimizer`` that are
            auto in the first stage.
    """

    run_config: RunConfig
    plans: tuple[Plan, ...]
    data: TrainVal
    checked: PreflightResult
    device: torch.device
    kept: tuple[str, ...]
    chosen: tuple[str, ...]
    auto_rates: frozenset[str]

    @property
    def stages(self) -> tuple[PlannedConfig, ...]:
        """Planned config of each stage; a run without stages has one."""
        return self.run_config.stages


def set_up_run(
    given: Config, reporter: Reporter, resume_point: ResumePoint | None = None
) -> RunSetup:
    """Set up a run; wrong folders, patterns and sizes raise before any weights are read.

    Args:
        given: Config of the run.
        resume_point: Checkpoint to resume from, with the configs to use instead of ``given``.

    Raises:
        FinetuneError: any subclass of it.
    """
    config = given
    if resume_point is not None:
        config, given = resume_point.config, resume_point.given
    if config.adapt is not None:
        require_peft()
    require_trackers(config.track)
    use_one_heap()
    device = select_device(config.runtime.device)
    if group().are_several:
        device = own_device(device, group().ranks.local_rank)
    make_deterministic(device)
    data = group().first(lambda: _found(config, reporter), TrainVal)
    _refuse_writing_among_classes(config, data)
    names = data.train.class_names
    config = _expanded(config, len(data.train), reporter)
    stages = stage_configs(config)
    if not len(data.val):
        if given.recipe == AUTO:
            raise ladder_without_validation()
        _refuse_without_validation(stages)
    plans = make_plans(stages, len(names), spec=None if resume_point is None else resume_point.spec)
    kept: tuple[str, ...] = ()
    if resume_point is None:
        earlier = plans[0].spec.earlier
        kept = kept_classes(earlier, config.model.keep_head, names)
        _check_earlier(config, earlier, plans[0])
        _refuse_frozen_at_random(plans[0])
        if plans[0].spec.note:
            reporter.say(plans[0].spec.note)
    else:
        resume_point.refuse_other_network(plans[resume_point.stage])
    for warning in dict.fromkeys(warning for plan in plans for warning in plan.freeze.warnings):
        reporter.warn(warning)
    data, checked = group().first(
        partial(_checked, data, config.data, reporter), tuple[TrainVal, PreflightResult]
    )
    if resume_point is not None:
        resume_point.refuse_other_data(data, reporter)
    if resume_point is None:
        levels = group().first(partial(levels_of, data, config.data, reporter))
        if levels is not None:
            stages = tuple(stage.with_values({"data.levels": levels}) for stage in stages)
        if levels != plans[0].spec.preprocessing.levels:
            spec = plans[0].spec.with_levels(levels)
            plans = tuple(replace(plan, spec=spec) for plan in plans)
    planned, chosen = _plan_configs(stages, plans, data)
    sizes = batch_sizes(len(data.train), config.data.batch_size, join_last_of_one=True)
    _refuse_idle_accumulation(config, len(sizes))
    for plan in plans:
        check_input_size(plan.skeleton, plan.spec, batch_size=min(sizes))
    run_config = RunConfig(given, planned)
    auto_rates = frozenset(
        key for key in ("lr", "weight_decay") if getattr(stages[0].optimizer, key) == AUTO
    )
    return RunSetup(run_config, plans, data, checked, device, kept, chosen, auto_rates)


def without_validation(why: str, to_do: str) -> ConfigError:
    """Return the error of a command that needs held-out images.

    Args:
        why: What is done on held-out images.
    """
    return ConfigError(
        f"is 0, but {why} on held-out images",
        kind="config.no_validation",
        key="data.val_fraction",
        to_do=to_do,
    )


def ladder_without_validation() -> ConfigError:
    """Return the error of ``recipe: auto`` without held-out images."""
    return without_validation(
        "recipe auto compares runs", "set a fraction above 0, or choose another recipe"
    )


def _refuse_without_validation(stages: Sequence[Config]) -> None:
    """Raise if a stage needs a validation metric although there is no validation split."""
    for config in stages:
        if config.train.early_stopping is not None:
            key = "train.early_stopping"
        elif config.schedule.name == "plateau":
            key = "schedule.name: plateau"
        else:
            continue
        raise ConfigError(
            "depends on a validation metric, but data.val_fraction 0 leaves no validation images",
            kind="config.conflict",
            key=key,
            to_do="remove one of them",
        )


def _refuse_writing_among_classes(config: Config, data: TrainVal) -> None:
    """Raise if an output folder is inside a class folder's parent.

    The next command would read it as one more class.
    """
    for key, folder in (("output_dir", config.output_dir), ("features.dir", config.features.dir)):
        written = None if folder is None else expand_user(str(folder)).resolve()
        for parent in data.parents:
            if written is not None and written.is_relative_to(parent.resolve()):
                raise OutputError(
                    f"is inside {parent}, where each folder is read as a class",
                    kind="output.inside_data",
                    key=key,
                    path=folder,
                    to_do=f"choose another folder with --set {key}=FOLDER",
                )


def _expanded(config: Config, num_train: int, reporter: Reporter) -> Config:
    expanded = expand_recipe(config, num_train=num_train)
    if config.recipe:
        frozen = [_frozen(stage.freeze.patterns) for stage in expanded.stages]
        word = "auto begins with linear_probe" if config.recipe == AUTO else config.recipe
        reporter.say(
            f"recipe {word}: {', then '.join(frozen) or _frozen(expanded.freeze.patterns)}"
        )
    return expanded


def _frozen(patterns: Sequence[str]) -> str:
    return f"freeze.patterns {listed_patterns(patterns)}" if patterns else "nothing is frozen"


def make_plans(
    stages: Sequence[Config], num_classes: int, *, spec: ModelSpec | None = None
) -> tuple[Plan, ...]:
    """Return the plan of each stage.

    Args:
        spec: Spec of the network, if it is already known.

    Raises:
        ConfigError: a pattern matches nothing; the message names the stage.
        ModelError: raised by `make_plan`.
    """
    plans: list[Plan] = []
    for number, config in enumerate(stages, start=1):
        try:
            plans.append(make_plan(config, num_classes, spec=plans[0].spec if plans else spec))
        except ConfigError as error:
            if len(stages) == 1:
                raise
            raise error.at(source=f"stage {number} of {len(stages)}") from error
    return tuple(plans)


def _plan_configs(
    stages: Sequence[Config], plans: Sequence[Plan], data: TrainVal
) -> tuple[tuple[PlannedConfig, ...], tuple[str, ...]]:
    """Return the planned config of each stage, and descriptions of the chosen values."""
    number, names = len(data.train), data.train.class_names
    all_planned, chosen = [], []
    for at, (config, plan) in enumerate(zip(stages, plans, strict=True), start=1):
        planned = plan_config(
            config, plan, num_train=number, class_names=names, sizes=lambda: some_sizes(data.train)
        )
        for line in in_words(config, planned, plan, number):
            chosen.append(f"stage {at}: {line}" if len(stages) > 1 else line)
        all_planned.append(planned)
    return tuple(all_planned), tuple(chosen)


def some_sizes(images: Images) -> list[tuple[int, int]]:
    """Return width and height of a few images, from their file headers."""
    return sizes_of(images, _MEASURED, SilentReporter())


def _refuse_idle_accumulation(config: Config, batches: int) -> None:
    if config.train.accumulate > batches:
        raise ConfigError(
            f"{config.train.accumulate} batches per step are more than the {batches} batches of "
            "an epoch",
            kind="config.invalid_value",
            key="train.accumulate",
            to_do=f"set at most {batches}, or a smaller data.batch_size",
        )


def _check_earlier(config: Config, earlier: SourceRun | None, first: Plan) -> None:
    """Raise if the run would overwrite the run it is initialised from, or freezes differently.

    A different freezing is allowed with ``freeze.may_differ``.
    """
    if earlier is None:
        if config.freeze.may_differ:
            raise ConfigError(
                "has no effect, since model.weights is not an existing finetune run",
                kind="config.no_effect",
                key="freeze.may_differ",
                to_do="remove it",
            )
        return
    if earlier.path.resolve().parent == Path(config.output_dir).resolve():
        raise OutputError(
            f"contains {earlier.path.name}, from which model.weights initializes this run",
            kind="output.is_the_source",
            key="output_dir",
            path=config.output_dir,
            to_do="choose another folder with --set output_dir=FOLDER",
        )
    changes = freezing_differences(first, earlier)
    if changes and not config.freeze.may_differ:
        raise ConfigError(
            changes,
            kind="config.freezing_differs",
            key="freeze.patterns",
            to_do="Set freeze.may_differ: true if this is intended, or freeze the same parameters",
        )


def _refuse_frozen_at_random(first: Plan) -> None:
    spec = first.spec
    random = [name for name in sorted(first.freeze.frozen) if is_left_out(name, spec.leave_out)]
    if random:
        thawed = ", ".join(f'"!{pattern}"' for pattern in spec.leave_out)
        raise ConfigError(
            f"{first_few(random)} would be initialized randomly and stay so, since "
            "freeze.patterns freezes it",
            kind="config.frozen_at_random",
            key="model.leave_out",
            to_do=f"unfreeze it: add {thawed} to freeze.patterns",
        )


def freezing_differences(plan: Plan, earlier: SourceRun) -> str:
    """Describe how a plan's frozen parameters differ from an earlier run's; empty if they agree."""
    return freezing_changes(earlier, [d.name for d in plan.freeze.decisions], plan.frozen)


def find_data(config: Config, reporter: Reporter) -> tuple[TrainVal, PreflightResult]:
    """Return the images that training would use, without unreadable ones."""
    return _checked(_found(config, reporter), config.data, reporter)


def levels_of(data: TrainVal, config: DataConfig, reporter: Reporter) -> int | None:
    """Return the white level of images with more than 8 bits per channel (`settled_levels`)."""
    return settled_levels(config.levels, (*data.train.paths, *data.val.paths), reporter)


def _found(config: Config, reporter: Reporter) -> TrainVal:
    reporter.status("listing the images")
    data = find_train_val(config.data, seed=config.seed, reporter=reporter)
    for note in data.notes:
        reporter.say(note)
    for warning in data.warnings:
        reporter.warn(warning)
    return data


def _checked(
    data: TrainVal, config: DataConfig, reporter: Reporter
) -> tuple[TrainVal, PreflightResult]:
    """Return the data without unreadable images."""
    reporter.status("checking the images")
    checked = preflight_check(
        data.train,
        data.val,
        on_unreadable=config.on_unreadable,
        base=data.base,
        reporter=reporter,
    )
    train, val = checked.parts
    train = replace(train, balanced=config.balance == "sampler")
    return replace(data, train=train, val=val), checked
