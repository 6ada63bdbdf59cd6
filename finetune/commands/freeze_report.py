"""``finetune freeze-report``: the plan of ``train``; needs no weights and no data."""

from __future__ import annotations

from finetune.config import Config
from finetune.data.folders import find_train_val
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
    if num_classes is None:
        num_classes = _count_classes(config, progress)
    return make_freeze_report(make_plan(config, num_classes), config)


def _count_classes(config: Config, progress: Progress | None) -> int:
    try:
        found = find_train_val(config.data, seed=config.seed, progress=progress)
        return len(found.train.class_names)
    except DataError as error:
        raise ConfigError(
            f"the number of classes is unknown, since the data cannot be read ({error}); "
            "give it with --num-classes N"
        ) from error
