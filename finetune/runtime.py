"""The machine: device, determinism, versions, memory."""

from __future__ import annotations

import os
import platform
import resource
import sys

import torch
import torchvision

from finetune import __version__
from finetune.errors import ConfigError


def select_device(wanted: str) -> torch.device:
    """The device that ``runtime.device`` means here.

    Raises:
        ConfigError: this machine does not have it.
    """
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, present in has.items() if present))
    if not has[wanted]:
        present = [name for name, there in has.items() if there]
        raise ConfigError(
            f"runtime.device: torch finds no {wanted} here; it finds {', '.join(present)}"
        )
    return torch.device(wanted)


def make_deterministic() -> None:
    """Same input, same bits, on one machine: choose deterministic kernels where there is a choice.

    Operations that have no deterministic form on CUDA run all the same: a warning in the middle
    of an epoch would help nobody.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def versions() -> dict[str, str]:
    """What a checkpoint should say it was made with."""
    return {
        "finetune": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def available_memory_bytes() -> int:
    """Physical memory that is free, where the system tells; else a cautious guess."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2 * 2**30


def peak_memory_mib() -> int:
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
