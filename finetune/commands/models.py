"""``finetune models``: every builder that a config may name; downloads nothing."""

from __future__ import annotations

import math
from typing import Any

from torchvision import models as torchvision_models

from finetune.backbones import BUILDERS, BUNDLED_MODEL, family_of
from finetune.config import ModelConfig
from finetune.errors import ConfigError, did_you_mean
from finetune.known_weights import preprocessing_of
from finetune.model import resolve_model
from finetune.results import ModelList, ModelRow, WeightsRow


def list_models(word: str | None = None) -> ModelList:
    """The builders whose name or family holds ``word``.

    Raises:
        ConfigError: none does.
    """
    names = [n for n in BUILDERS if not word or word in n or word in family_of(n).name]
    if not names:
        raise ConfigError(
            f"no builder's name holds {word!r}.{did_you_mean(str(word), BUILDERS, limit=3)} "
            f"`finetune models` lists all {len(BUILDERS)}."
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
    known = top1 is not None and not math.isnan(top1)  # weights of features only publish none
    return WeightsRow(entry.name, top1 / 100 if known else None, preprocessing_of(entry).crop)
