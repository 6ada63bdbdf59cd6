"""Files of tensors, read without running code from them."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class UnsafeFileError(Exception):
    """The file cannot be read without running code from it, or is no file of tensors at all."""


class DamagedFileError(Exception):
    """The file is broken; the text is the reason, in one line."""


def read_tensors(path: Path, *, mapped: bool = False) -> Any:
    """What a ``.safetensors`` file or a torch file holds, on the CPU.

    Args:
        mapped: Of a torch file, read tensors only when they are used.

    Raises:
        UnsafeFileError, DamagedFileError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # about pickles that it is going to refuse anyway
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(_first_line(error)) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, SafetensorError) as error:
        raise DamagedFileError(_first_line(error)) from error


def copy_module_versions(source: Any, target: OrderedDict[str, Tensor]) -> None:
    """Hand on what a state dict says of its modules' versions, an attribute that copies lose.

    torchvision's mnasnet refuses a state dict without.
    """
    versions = getattr(source, "_metadata", None)
    if versions is not None:
        target._metadata = versions  # type: ignore[attr-defined]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
