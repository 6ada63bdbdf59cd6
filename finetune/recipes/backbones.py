"""Choice of backbones by their published accuracy and the predicted time of a feature pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torchvision import models

from finetune.config.model_registry import BUILDERS, family_of

PASS_S = 60.0
"""Longest predicted feature pass, in seconds, of the backbone that `init` chooses."""
CPU_FALLBACK, GPU_FALLBACK = "mobilenet_v3_large", "resnet50"
"""Backbones for more photos than any more accurate one computes the features of in `PASS_S`."""
SHORT_LIST = 4
"""Default number of backbones that ``tune --backbones auto`` compares."""
_MOST_MB = 110.0
"""Largest file of weights, in MB, that is downloaded without being asked for by name."""
_DECODE_S = 0.002
"""Seconds in which one core decodes a photo."""
_DEPTHWISE = frozenset({"efficientnet", "mnasnet", "mobilenet_v2", "mobilenet_v3", "shufflenet_v2"})
_CORE_MACS_PER_S, _CORE_DEPTHWISE_PER_S = 6e10, 3.5e10
"""Multiply-adds per second of a CPU core, in the fastest format.

Measured on an AMD EPYC with bfloat16: 43 to 69 for RegNet, ResNet-50, DenseNet, ConvNeXt and Swin,
85 to 97 for VGG, ViT and ResNet-18, 27 to 39 for networks of depthwise convolutions (times 1e9).
"""
_MACS_PER_S = {"cuda": 5e12, "mps": 5e11}
"""Multiply-adds per second of other devices, as a rough guess."""


@dataclass(frozen=True)
class Machine:
    """Machine on which a feature pass runs.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        cores: Number of CPU cores, which also decode the images.
    """

    device: str
    cores: int

    def pass_s(self, model: str, rows: int, multiply_adds: float) -> float:
        """Return the predicted duration, in seconds, of computing features once.

        Args:
            model: Name of the builder.
            rows: Number of images and mirror images.
            multiply_adds: Forward multiply-adds of the network for one image.
        """
        depthwise = family_of(model).name in _DEPTHWISE
        core = _CORE_DEPTHWISE_PER_S if depthwise else _CORE_MACS_PER_S
        forward_s = multiply_adds / _MACS_PER_S.get(self.device, core * self.cores)
        return rows * (forward_s + _DECODE_S / self.cores)


@dataclass(frozen=True)
class Backbone:
    """A torchvision builder with its default weights.

    Attributes:
        name: Name of the builder.
        top1: Published top-1 accuracy of the weights on ImageNet-1K, in percent.
        multiply_adds: Forward multiply-adds for one image at ``crop``.
        crop: Input size of the weights, in pixels.
        megabytes: Size of the file.
    """

    name: str
    top1: float
    multiply_adds: float
    crop: int
    megabytes: float

    def pass_s(self, machine: Machine, rows: int, crop: int | None = None) -> float:
        """Return the predicted duration of a feature pass in seconds.

        Args:
            crop: Input size in pixels, where it differs from that of the weights.
        """
        share = 1.0 if crop is None else (min(crop, self.crop) / self.crop) ** 2
        return machine.pass_s(self.name, rows, share * self.multiply_adds)


@cache
def _default(name: str) -> Backbone:
    entry = models.get_model_weights(name).DEFAULT
    facts = entry.meta
    return Backbone(
        name=name,
        top1=facts["_metrics"]["ImageNet-1K"]["acc@1"],
        multiply_adds=facts["_ops"] * 1e9,
        crop=entry.transforms().crop_size[0],
        megabytes=facts["_file_size"],
    )


def _backbones() -> list[Backbone]:
    """Return the backbones whose weights are small enough, the most accurate first."""
    found = [one for one in map(_default, BUILDERS) if one.megabytes <= _MOST_MB]
    return sorted(found, key=lambda one: (-one.top1, one.name))


def most_accurate(machine: Machine, rows: int, *, crop: int | None = None) -> Backbone:
    """Return the most accurate backbone whose feature pass is predicted to take `PASS_S` at most.

    Networks with higher ImageNet accuracy transfer better (Kornblith et al. 2019). For photos so
    many that only a less accurate backbone than the fallback of the device would do, the fallback
    is returned.

    Args:
        rows: Number of images and mirror images.
        crop: Input size in pixels that small images are resized to; None for that of the weights.
            Every backbone in question supports it: those of a fixed size have larger files.
    """
    fallback = GPU_FALLBACK if machine.device == "cuda" else CPU_FALLBACK
    return next(
        one
        for one in _backbones()
        if one.name == fallback or one.pass_s(machine, rows, crop) <= PASS_S
    )


def short_list(
    machine: Machine,
    rows: int,
    seconds: float,
    *,
    crop: int | None = None,
    besides: Sequence[str] = (),
    limit: int = SHORT_LIST,
) -> tuple[Backbone, ...]:
    """Return the backbones to compare in a given time, the most accurate first.

    Only one of each family, and only backbones more accurate on ImageNet than ``besides``. Each
    takes at most half of the time that is left, so that several fit.

    Args:
        seconds: Time of all feature passes together.
        crop: Input size in pixels, where the config gives one; None for that of the weights.
        besides: Backbones that are compared in any case, and whose families are left out.
        limit: Largest number of backbones, ``besides`` included.
    """
    families = {family_of(name).name for name in besides}
    least = max((_default(name).top1 for name in besides), default=0.0)
    found: list[Backbone] = []
    for one in _backbones():
        if one.top1 <= least:
            break
        family, pass_s = family_of(one.name).name, one.pass_s(machine, rows, crop)
        if len(found) + len(besides) == limit:
            break
        if family not in families and pass_s <= seconds / 2:
            found.append(one)
            families.add(family)
            seconds -= pass_s
    return tuple(found)
