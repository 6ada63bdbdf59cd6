"""``finetune freeze-report``: what ``train`` would freeze; needs neither weights nor data."""

from __future__ import annotations

from dataclasses import replace

from finetune.config.schema import Config
from finetune.config.stages import stage_configs
from finetune.core.errors import ConfigError, DataError
from finetune.core.reporter import Reporter
from finetune.data.images import TrainVal
from finetune.data.sources.open import find_train_val
from finetune.freezing.freeze_report import make_freeze_report, staged_report
from finetune.freezing.plan import Plan
from finetune.recipes.auto import plan_config, resolve_optimizer
from finetune.recipes.named import expand_recipe
from finetune.results.freeze import FreezeReport, StagedFreezeReport
from finetune.training.setup import freezing_differences, make_plans


def freeze_report(
    config: Config,
    *,
    num_classes: int | None = None,
    stage: int | None = None,
    reporter: Reporter | None = None,
) -> FreezeReport | StagedFreezeReport:
    """Report which parameters `train` would freeze.

    Args:
        num_classes: Number of classes; by default the number found in the data.
        stage: Index of the only stage to report, from 1; by default all stages.

    Raises:
        ConfigError: a pattern matches nothing, the number of classes is unknown, or the stage
            does not exist.
        ModelError: the weights do not exist, or the network cannot be built.
    """
    found = _find(config, reporter) if num_classes is None else None
    names = found.train.class_names if found else ()
    classes = num_classes or len(names)
    number = len(found.train) if found else None
    config = expand_recipe(config, num_train=number)
    stages = stage_configs(config)
    if stage is not None and stage > len(stages):
        raise ConfigError(
            f"there is no stage {stage}; this config has {len(stages)}",
            kind="config.invalid_value",
            key="--stage",
        )
    plans = make_plans(stages, classes)
    if found is not None:
        stages = tuple(
            plan_config(part, plan, num_train=len(found.train), class_names=names)
            for part, plan in zip(stages, plans, strict=True)
        )
    reports = [
        make_freeze_report(
            plan,
            part,
            resolve_optimizer(part, plan, number),
            num_train=number,
            num_val=len(found.val) if found else None,
        )
        for plan, part in zip(plans, stages, strict=True)
    ]
    reports[0] = _with_changes(reports[0], config, plans[0])
    if stage is not None:
        return reports[stage - 1]
    return staged_report(reports, [part.train.epochs for part in stages])


def _with_changes(report: FreezeReport, config: Config, plan: Plan) -> FreezeReport:
    """Add a warning for freezing differences that `train` would reject."""
    earlier = plan.spec.earlier
    changes = freezing_differences(plan, earlier) if earlier is not None else ""
    if not changes or config.freeze.may_differ:
        return report
    text = f"freeze.patterns: {changes}; `finetune train` requires freeze.may_differ: true"
    return replace(report, warnings=(*report.warnings, text))


def _find(config: Config, reporter: Reporter | None) -> TrainVal:
    try:
        return find_train_val(config.data, seed=config.seed, reporter=reporter)
    except DataError as error:
        raise ConfigError(
            f"the number of classes is unknown, since the data cannot be read ({error})",
            kind="config.unknown_num_classes",
            to_do="give it with --num-classes N",
        ) from error
