"""Config section ``adapt``: trainable adapters (LoRA) on frozen weights; imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from finetune.config.base import InvalidError, Section, one_line, tuple_of

ADAPTED_FAMILIES = ("vit", "swin", "swin_v2", "maxvit")


class LoraConfig(Section):
    """Low-rank adapters: a product of two matrices added to each weight (Hu et al. 2021)."""

    rank: int = Field(default=8, ge=1, le=4096)
    """Rank of the product: columns of the one matrix, rows of the other."""
    alpha: float = Field(default=16.0, gt=0)
    """Scaling: the product is multiplied by alpha / rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(tuple_of)] = ("*",)
    """Globs over the names of frozen weights; those that cannot be adapted are skipped."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate on the adapter's input; linear layers only."""

    @field_validator("targets")
    @classmethod
    def _targets_say_something(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(glob.strip() for glob in targets):
            raise InvalidError("must contain at least one glob, and no empty one")
        for glob in targets:
            one_line(glob)
        return targets


class AdaptConfig(Section):
    """Adapters trained on top of frozen weights and merged into them when saved."""

    lora: LoraConfig
