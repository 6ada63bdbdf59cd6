"""Files of tensors, read without running code from them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_ARCHIVE = b"PK\3\4"
_ZEROS = b"\nbytearray\n"
"""In a pickle: the one thing that torch's weights-only reader makes of any size and fills."""


class UnsafeFileError(Exception):
    """The file cannot be read without running code from it, or is no file of tensors at all."""


class DamagedFileError(Exception):
    """The file is broken; the text is the reason, in one line."""


def read_tensors(path: Path, *, mapped: bool = False) -> Any:
    """What a ``.safetensors`` file or a torch file holds, on the CPU.

    It takes no more memory than the file has bytes, whatever the file claims.

    Args:
        mapped: Of a torch file, read tensors only when they are used.

    Raises:
        UnsafeFileError, DamagedFileError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bombs(path)
        with warnings.catch_warnings():  # about pickles that it is going to refuse anyway
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
        _refuse_claims(loaded, path.stat().st_size)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(_first_line(error)) from error
    except Exception as error:  # torch's readers raise nearly anything on a broken file
        if "weights_only" in str(error):  # TorchScript, and tar archives from before torch 0.1.10
            raise UnsafeFileError(_first_line(error)) from error
        raise DamagedFileError(_first_line(error)) from error
    return loaded


def _refuse_bombs(path: Path) -> None:
    """Refuse what would unpack to more than the file holds; torch.save packs nothing."""
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            # A form from before torch 1.6, whose storages torch reads as they lie.
            file.seek(0)
            holds_zeros = _holds(file, _ZEROS)
        else:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
                packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
                if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                    raise DamagedFileError("it unpacks to more than it holds")
                pickles = [archive.read(part) for part in parts if part.filename.endswith(".pkl")]
            holds_zeros = any(_ZEROS in content for content in pickles)
    if holds_zeros:
        raise DamagedFileError("it holds more than tensors and words")


def _holds(file: IO[bytes], wanted: bytes) -> bool:
    end = b""
    while block := file.read(1 << 22):
        if wanted in end + block:
            return True
        end = block[1 - len(wanted) :]
    return False


def _refuse_claims(loaded: Any, size: int) -> None:
    """Refuse tensors that state more numbers than lie in the file: nothing has touched them yet."""
    storages: dict[int, int] = {}
    for tensor in _tensors_in(loaded):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DamagedFileError("it holds tensors that are no plain arrays")
        if tensor.numel() * tensor.itemsize > size:
            raise DamagedFileError("a tensor in it claims more numbers than there are")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise DamagedFileError("its tensors claim more numbers than there are")


def _tensors_in(loaded: Any) -> Iterator[Tensor]:
    waiting, seen = [loaded], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple | set) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one


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
