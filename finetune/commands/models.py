"""``finetune models``: list the supported torchvision builders, without downloading anything."""

from __future__ import annotations

import math
from typing import Any

from torchvision import models as torchvision_models

from finetune.config.model_registry import BUILDERS, BUNDLED_MODEL, family_of
from finetune.config.schema import ModelConfig
from finetune.core.errors import ConfigError
from finetune.core.text import did_you_mean
from finetune.models.build import resolve_model
from finetune.models.known_weights import preprocessing_of
from finetune.results.catalog import ModelList, ModelRow, WeightsRow


def list_models(word: str | None = None) -> ModelList:
    """List the builders whose name or family contains ``word``.

    Raises:
        ConfigError: no builder matches.
    """
    names = [n for n in BUILDERS if not word or word in n or word in family_of(n).name]
    if not names:
        raise ConfigError(
            f"no model's name contains {word!r}",
            kind="config.unknown_model",
            to_do=f"{did_you_mean(str(word), BUILDERS, limit=3)} `finetune models` lists all "
            f"{len(BUILDERS)}",
        )
    return ModelList(tuple(_row(name) for name in names))


def _row(name: str) -> ModelRow:
    entries = list(torchvision_models.get_model_weights(name))
    weights = [_weights_row(entry) for entry in entries]
    if name == BUNDLED_MODEL:
        bundled = resolve_model(ModelConfig(name=name, weights="bundled"))
        weights.append(WeightsRow("bundled", None, bundled.preprocessing.crop))
    return ModelRow(
        name=name,
        parameters=entries[0].meta["num_params"],
        head=family_of(name).head,
        input_size=weights[0].input_size,
        sizes=family_of(name).sizes,
        weights=tuple(weights),
    )


def _weights_row(entry: Any) -> WeightsRow:
    top1 = entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    known = top1 is not None and not math.isnan(top1)  # feature-only weights publish no accuracy
    return WeightsRow(entry.name, top1 / 100 if known else None, preprocessing_of(entry).crop)
