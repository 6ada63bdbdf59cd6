"""``finetune freeze-report``: the plan of ``train``; needs no weights and no data."""

from __future__ import annotations

from finetune.config import Config
from finetune.data.images import TrainVal
from finetune.data.sources import find_train_val
from finetune.defaults import resolve_defaults
from finetune.errors import ConfigError, DataError
from finetune.planning import make_freeze_report, make_plan
from finetune.progress import Progress
from finetune.results import FreezeReport


def freeze_report(
    config: Config, *, num_classes: int | None = None, progress: Progress | None = None
) -> FreezeReport:
    """Report what would be frozen.

    Args:
        num_classes: Instead of counting class folders.

    Raises:
        ConfigError: a pattern matches nothing, or the number of classes is unknown.
        ModelError: no such weights, or the network cannot be built.
    """
    if num_classes is not None:
        plan = make_plan(config, num_classes)
        return make_freeze_report(plan, resolve_defaults(config, plan, num_train=None))
    data = _find(config, progress)
    names, number = data.train.class_names, len(data.train)
    plan = make_plan(config, len(names))
    resolved = resolve_defaults(config, plan, num_train=number, class_names=names)
    return make_freeze_report(plan, resolved, num_train=number, num_val=len(data.val))


def _find(config: Config, progress: Progress | None) -> TrainVal:
    try:
        return find_train_val(config.data, seed=config.seed, progress=progress)
    except DataError as error:
        raise ConfigError(
            f"the number of classes is unknown, since the data cannot be read ({error}); "
            "give it with --num-classes N"
        ) from error
