"""Small configs for every torchvision builder, and which of them only the slow tests build."""

from __future__ import annotations

from torchvision import models

from finetune.config.model_registry import family_of
from finetune.config.schema import Config

# Weights above this size are written and hashed only where somebody asks for the record.
HEAVY_PARAMETERS = 22_000_000
# The smallest of its family all the same.
ALWAYS = {"alexnet", "convnext_tiny", "swin_t", "swin_v2_t", "inception_v3", "maxvit_t"}
SMALLEST = {"alexnet": 63, "inception_v3": 75, "maxvit": 224, "googlenet": 33, "densenet": 64}


def is_heavy(name: str) -> bool:
    parameters: int = next(iter(models.get_model_weights(name))).meta["num_params"]
    return parameters > HEAVY_PARAMETERS and name not in ALWAYS


def small_config(name: str, **model: object) -> Config:
    crop = SMALLEST.get(family_of(name).name, 28 if name == "vit_h_14" else 32)
    return Config.model_validate(
        {
            "model": {
                "name": name,
                "weights": "none",
                "preprocessing": {"resize": crop, "crop": crop},
                **model,
            },
            "data": {"root": "unread", "batch_size": 4},
            "optimizer": {"lr": 0.1},
            "schedule": {"warmup_epochs": 0.0},
            "output_dir": "unwritten",
        }
    )
