"""The config's section ``adapt``: small trainable additions to frozen weights; imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from finetune.config_section import Section, one_line, tuple_of

ADAPTED_FAMILIES = ("vit", "swin", "swin_v2", "maxvit")


class LoraConfig(Section):
    """A product of two thin matrices beside each weight (Hu et al. 2021)."""

    rank: int = Field(default=8, ge=1, le=4096)
    """Columns of the one and rows of the other."""
    alpha: float = Field(default=16.0, gt=0)
    """The product counts alpha / rank times."""
    targets: Annotated[tuple[str, ...], BeforeValidator(tuple_of)] = ("*",)
    """Globs over the names of frozen weights; of what they match, those that can be adapted."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what goes into the product; for linear layers alone."""

    @field_validator("targets")
    @classmethod
    def _targets_say_something(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(glob.strip() for glob in targets):
            raise ValueError("must hold at least one glob, and none that is empty")
        for glob in targets:
            one_line(glob)
        return targets


class AdaptConfig(Section):
    """What is trained beside frozen weights, and added to them in what is saved."""

    lora: LoraConfig
