"""Files of tensors, read without running code from them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

_ARCHIVE = b"PK\3\4"
_NUMPY = ("scalar", "_reconstruct")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_LIGHTNING = (
    *("pytorch_lightning", "lightning.pytorch"),
    *("lightning_fabric", "lightning.fabric"),
)
_ZEROS = b"\nbytearray\n"
"""In a pickle: the one thing that torch's weights-only reader makes of any size and fills."""


class UnsafeFileError(Exception):
    """The file cannot be read without running code from it, or is no file of tensors at all."""


class DamagedFileError(Exception):
    """The file is broken; the text is the reason, in one line."""


class _MadeWithoutACall(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("it calls a function that is not torch's")


class PassedOver(metaclass=_MadeWithoutACall):
    """Stands for an object of any class that a pickle makes without a call, and holds nothing."""

    def __new__(cls, *_: Any) -> PassedOver:
        """Ignores what the object was made of."""
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignores what the object held."""


class _Value:
    """Stands for a value that a pickle makes by a call, such as a path or a number of numpy."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dictionary:
    """Stands for a subclass of dict; what is made in place of it is a plain one."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


_PLAIN = {
    PassedOver: (
        "argparse.Namespace",
        *(f"builtins.{n}" for n in ("list", "dict", "int", "float")),
    ),
    _Value: (
        *(f"numpy.{core}.multiarray.{n}" for core in ("core", "_core") for n in _NUMPY),
        *("numpy.dtype", "numpy.ndarray"),
        *(f"{module}.{n}" for module in ("pathlib", "pathlib._local") for n in _PATHS),
        *(f"datetime.{n}" for n in ("datetime", "date", "time", "timedelta", "timezone")),
    ),
    _Dictionary: (
        "collections.defaultdict",
        *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING[:2]),
        *(f"{package}.utilities.data.AttributeDict" for package in _LIGHTNING[2:]),
    ),
}
"""What stands for the classes that training scripts save beside a state dict."""


def read_tensors(path: Path, *, mapped: bool = False, pass_over: bool = False) -> Any:
    """What a ``.safetensors`` file or a torch file holds, on the CPU.

    It takes no more memory than the file has bytes, whatever the file claims.

    Args:
        mapped: Read the tensors of a torch file only when they are used, where its form allows.
        pass_over: Put something empty in the place of plain objects beside the tensors, as the
            ``argparse.Namespace`` that training scripts save; nothing of them is imported or run.

    Raises:
        UnsafeFileError, DamagedFileError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bombs(path)
        mmap = (mapped and zipfile.is_zipfile(path)) or None
        with warnings.catch_warnings():  # about pickles that it is going to refuse anyway
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_stand_ins(path) if pass_over else []):
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _refuse_claims(loaded, path.stat().st_size)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(_first_line(error)) from error
    except Exception as error:  # torch's readers raise nearly anything on a broken file
        if "weights_only" in str(error):  # TorchScript, and tar archives from before torch 0.1.10
            raise UnsafeFileError(_first_line(error)) from error
        raise DamagedFileError(_first_line(error)) from error
    return loaded


def preprocessing_in(path: Path) -> str | None:
    """What the header of a ``.safetensors`` file says of its preprocessing, as our exports do."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("preprocessing")
    except Exception:  # a broken header, which the reader of its tensors reports
        return None


def _stand_ins(path: Path) -> list[Any]:
    """A class of ours for every name in a torch file that torch would refuse, paired with it.

    torch's weights-only reader takes these in the place of what is named, and imports nothing.
    Functions are not among them: what calls one is refused as before.
    """
    found = {name: kind for kind, names in _PLAIN.items() for name in names}
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not of this form, or broken, which torch.load reports
        others = []
    return [(kind, name) for name, kind in (dict.fromkeys(others, PassedOver) | found).items()]


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


def copy_module_versions(
    source: Any,
    target: OrderedDict[str, Tensor],
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> None:
    """Hand on what a state dict says of its modules' versions, an attribute that copies lose.

    torchvision's mnasnet refuses a state dict without.

    Args:
        rename: From a name in ``source``, with a dot at its end, to one in ``target``.
    """
    versions = getattr(source, "_metadata", None)
    if isinstance(versions, dict):
        target._metadata = OrderedDict(  # type: ignore[attr-defined]
            (rename(f"{name}.").removesuffix("."), version) for name, version in versions.items()
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
