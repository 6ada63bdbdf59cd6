"""Device selection, determinism and package versions."""

from __future__ import annotations

import os
import platform
import warnings

import PIL
import torch
import torchvision

from finetune.core.errors import ConfigError
from finetune.core.locks import lock_across_forks
from finetune.core.version import __version__

starting_pool = lock_across_forks()


def select_device(wanted: str) -> torch.device:
    """Return the device for ``runtime.device``; ``auto`` is cuda, else mps, else cpu.

    Raises:
        ConfigError: The device is not available on this machine.
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
            f"torch finds no {wanted} device; it finds {', '.join(present)}",
            kind="config.no_such_device",
            key="runtime.device",
        )
    return torch.device(wanted)


def own_device(device: torch.device, local_rank: int) -> torch.device:
    """Return the GPU of one of several processes on this machine; they share a CPU.

    Raises:
        ConfigError: The processes cannot share the device.
    """
    if device.type == "mps":
        raise ConfigError(
            "several processes cannot share an mps device",
            kind="config.one_process",
            key="runtime.device",
            to_do="use one process, or set runtime.device: cpu",
        )
    if device.type != "cuda":
        return device
    own = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of one device.

    ``torch.manual_seed`` would seed those of all visible GPUs, in every step, and would record a
    traceback for each unused type of device, which takes longer than a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def make_deterministic(device: torch.device) -> None:
    """Select deterministic kernels: the same input gives the same bits on the same machine.

    Operations without a deterministic implementation on CUDA, such as the backward pass of
    attention, still run. torch's warning about them is suppressed, since it would appear within an
    epoch, where nothing can be done about it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if device.type == "cuda":
        # torch's defaults, which the results depend on: float32 convolutions round their inputs to
        # TF32, matrix products do not.
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
        warnings.filterwarnings("ignore", ".*(a deterministic implementation|non-deterministic).*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # No code here reads uninitialised memory, and filling it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def versions() -> dict[str, str]:
    """Return the versions to record in a checkpoint."""
    return {
        "finetune": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
