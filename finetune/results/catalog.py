"""Results of ``models`` and ``cache list``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsRow:
    """Weights entry; ``top1`` is the ImageNet accuracy published by torchvision."""

    name: str
    top1: float | None
    input_size: int


@dataclass(frozen=True)
class ModelRow:
    """Builder accepted by ``model.name``."""

    name: str
    parameters: int
    head: str
    input_size: int
    sizes: str
    weights: tuple[WeightsRow, ...]


@dataclass(frozen=True)
class ModelList:
    """Builders whose names contain the given word."""

    models: tuple[ModelRow, ...]


@dataclass(frozen=True)
class CacheRow:
    """Feature store.

    Attributes:
        cut: Module after which the frozen prefix ends.
        form: Compute format and device.
        used_at: Time of last use, in seconds since the Unix epoch.
    """

    key: str
    network: str
    cut: str
    form: str
    photos: int
    num_bytes: int
    used_at: float


@dataclass(frozen=True)
class CacheList:
    """Feature stores in a folder; if ``removed``, those that were removed from it."""

    folder: str
    stores: tuple[CacheRow, ...]
    removed: bool
