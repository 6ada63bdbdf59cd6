"""Limits of a network's answers: what `predict` needs to mark photos unlike the training photos,
and to give prediction sets. They are kept in the checkpoint, and fitted by
`finetune.inference.limits`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class LimitsRecord(BaseModel):
    """JSON part of the limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(gt=0, lt=1)
    """False-alarm rate: the share of photos like the training photos that lie beyond the limit."""
    training_images: int = Field(ge=1)
    """Number of training photos that the distance was fitted on."""
    images: int = Field(ge=1)
    """Number of validation photos that the limits were set on."""


@dataclass(frozen=True)
class Limits:
    """Limits of a network's answers.

    The squared distance of an embedding, normalised to length 1 and centred to ``e``, is
    ``scale * (e @ e) - ((directions @ e) ** 2).sum() + (offsets - weights @ e).min()``.

    Attributes:
        centre: Mean of the normalised embeddings ``(d,)``.
        scale: Weight of the squared length, ``()``.
        directions: Directions ``(k, d)`` in which the embeddings of a class vary most.
        weights: Linear part of the squared distance to each class ``(c, d)``.
        offsets: Constant part ``(c,)``.
        shares: Probability of the true class of each validation photo ``(n,)``, ascending.
    """

    record: LimitsRecord
    centre: Tensor
    scale: Tensor
    directions: Tensor
    weights: Tensor
    offsets: Tensor
    shares: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: getattr(self, name) for name in _DIMENSIONS}

    @classmethod
    def of(cls, record: LimitsRecord, tensors: Mapping[str, Tensor]) -> Limits:
        """Return the limits in a checkpoint, which may be hostile.

        Raises:
            ValueError: The tensors are not those of limits.
        """
        if tensors.keys() != _DIMENSIONS.keys():
            raise ValueError(f"its limits are not {', '.join(_DIMENSIONS)}")
        for name, dimensions in _DIMENSIONS.items():
            tensor = tensors[name]
            if tensor.dtype != torch.float32 or tensor.dim() != dimensions:
                raise ValueError(f"{name} of its limits is not float32 of {dimensions} dimensions")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} of its limits contains a number that is not finite")
        limits = cls(record, **tensors)
        width, classes = len(limits.centre), len(limits.offsets)
        shapes: dict[str, Any] = {
            "directions": (len(limits.directions), width),
            "weights": (classes, width),
            "shares": (record.images,),
        }
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} of its limits has the wrong shape")
        if not width or not classes:
            raise ValueError("its limits are empty")
        if bool((limits.shares.diff() < 0).any()):
            raise ValueError("shares of its limits are not ascending")
        return limits


_DIMENSIONS = {
    "centre": 1,
    "scale": 0,
    "directions": 2,
    "weights": 2,
    "offsets": 1,
    "shares": 1,
}
"""Number of dimensions of each tensor."""
