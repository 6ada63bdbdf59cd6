"""``finetune freeze-report``: the plan of ``train``; needs no weights and no data."""

from __future__ import annotations

from dataclasses import replace

from finetune.commands.settling import freezing_of, make_plans
from finetune.config import Config
from finetune.data.images import TrainVal
from finetune.data.sources import find_train_val
from finetune.defaults import resolve_defaults
from finetune.errors import ConfigError, DataError
from finetune.named_recipes import expand_recipe
from finetune.planning import Plan, make_freeze_report
from finetune.progress import Progress
from finetune.results import FreezeReport, StagedFreezeReport
from finetune.stages import stage_configs, staged_report


def freeze_report(
    config: Config,
    *,
    num_classes: int | None = None,
    stage: int | None = None,
    progress: Progress | None = None,
) -> FreezeReport | StagedFreezeReport:
    """Report what would be frozen.

    Args:
        num_classes: Instead of counting class folders.
        stage: Of this one alone, from 1.

    Raises:
        ConfigError: a pattern matches nothing, the number of classes is unknown, or there is no
            such stage.
        ModelError: no such weights, or the network cannot be built.
    """
    found = _find(config, progress) if num_classes is None else None
    names = found.train.class_names if found else ()
    classes = num_classes or len(names)
    number = len(found.train) if found else None
    config = expand_recipe(config, num_train=number)
    stages = stage_configs(config)
    if stage is not None and stage > len(stages):
        raise ConfigError(f"--stage: {stage} is past the last; there are {len(stages)} here")
    plans = make_plans(stages, classes)
    stages = tuple(
        resolve_defaults(part, plan, num_train=number, class_names=names)
        for part, plan in zip(stages, plans, strict=True)
    )
    reports = [
        make_freeze_report(
            plan,
            part,
            num_train=number,
            num_val=len(found.val) if found else None,
        )
        for plan, part in zip(plans, stages, strict=True)
    ]
    reports[0] = _with_changes(reports[0], config, plans[0])
    if stage is not None:
        return reports[stage - 1]
    return staged_report(reports, stages)


def _with_changes(report: FreezeReport, config: Config, plan: Plan) -> FreezeReport:
    """With what `train` would refuse as a warning."""
    earlier = plan.spec.earlier
    changes = freezing_of(plan, earlier) if earlier is not None else ""
    if not changes or config.freeze.may_differ:
        return report
    text = f"freeze.patterns: {changes}; `train` asks for freeze.may_differ: true"
    return replace(report, warnings=(*report.warnings, text))


def _find(config: Config, progress: Progress | None) -> TrainVal:
    try:
        return find_train_val(config.data, seed=config.seed, progress=progress)
    except DataError as error:
        raise ConfigError(
            f"the number of classes is unknown, since the data cannot be read ({error}); "
            "give it with --num-classes N"
        ) from error
