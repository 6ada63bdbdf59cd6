"""Safe loading of tensor files: no code from the file is executed."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

_ARCHIVE = b"PK\3\4"
_NUMPY = ("scalar", "_reconstruct")
_NUMPY_RANDOM = ("generator", "bit_generator", "randomstate")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_LIGHTNING = (
    *("pytorch_lightning", "lightning.pytorch"),
    *("lightning_fabric", "lightning.fabric"),
)
_ZEROS = b"\nbytearray\n"
"""``bytearray`` in a pickle: the only global with which torch's weights-only reader allocates and
fills memory of any size."""


_REFUSED = re.compile(r"(?:GLOBAL|it calls|but got) (\S+)")
"""The class or function that a message of torch's reader, or of a stand-in, is about."""


class UnsafeFileError(Exception):
    """The file cannot be read without executing code from it, or is not a tensor file.

    Attributes:
        refused: Name of the class or function that the file needs; empty if unknown.
    """

    def __init__(self, message: str, refused: str = "") -> None:
        super().__init__(message)
        self.refused = refused


class DamagedFileError(Exception):
    """The file is damaged; the message is the reason, in one line."""


class _MadeWithoutACall(type):
    original: str

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError(f"it calls {cls.original}")

    def __repr__(cls) -> str:
        return cls.original


class PassedOver(metaclass=_MadeWithoutACall):
    """Empty stand-in for objects of any class that a pickle creates without calling a function.

    Attributes:
        original: Name of the class that it replaces.
    """

    original = "a plain class"

    @staticmethod
    def of(name: str) -> type[PassedOver]:
        """Return a stand-in for the class with this name."""
        kind = _MadeWithoutACall("PassedOver", (PassedOver,), {"original": name})
        return cast("type[PassedOver]", kind)

    def __new__(cls, *_: Any) -> PassedOver:
        """Ignore the arguments of the original object."""
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore the state of the original object."""


class _Value:
    """Stand-in for values that a pickle creates by a call, such as a path or a numpy scalar."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dictionary:
    """Stand-in for subclasses of dict; creates a plain `OrderedDict` instead."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List:
    """Stand-in for other sequences that a pickle fills like a list; creates a plain list."""

    def __new__(cls, *_: Any) -> Any:
        return []


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
        *(f"builtins.{n}" for n in ("slice", "range", "frozenset")),
        *(f"numpy.random._pickle.__{n}_ctor" for n in _NUMPY_RANDOM),
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "types.SimpleNamespace",
        "torchvision.transforms.functional.InterpolationMode",
    ),
    _List: ("collections.deque",),
    _Dictionary: (
        "collections.defaultdict",
        *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING[:2]),
        *(f"{package}.utilities.data.AttributeDict" for package in _LIGHTNING[2:]),
    ),
}
"""Classes that training scripts save with a state dict, by the stand-in that replaces them."""


def read_tensors(path: Path, *, mapped: bool = False, pass_over: bool = False) -> Any:
    """Load a ``.safetensors`` or torch file onto the CPU.

    Takes no more memory than the size of the file, whatever sizes the file claims.

    Args:
        mapped: Memory-map the tensors of a torch file, if its format allows it.
        pass_over: Replace plain objects other than tensors with empty stand-ins, such as the
            ``argparse.Namespace`` that training scripts save; none of them is imported or executed.

    Raises:
        UnsafeFileError: The file cannot be read without executing code from it.
        DamagedFileError: The file is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bombs(path)
        mmap = (mapped and zipfile.is_zipfile(path)) or None
        with warnings.catch_warnings():  # about pickles that are refused anyway
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_stand_ins(path) if pass_over else []):
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _refuse_claims(loaded, path.stat().st_size)
    except pickle.UnpicklingError as error:
        name = _REFUSED.search(str(error))
        raise UnsafeFileError(_first_line(error), name[1] if name else "") from error
    except Exception as error:  # torch raises nearly any exception on a damaged file
        if "weights_only" in str(error):  # TorchScript, or a tar archive from before torch 0.1.10
            raise UnsafeFileError(_first_line(error)) from error
        raise DamagedFileError(_first_line(error)) from error
    return loaded


def preprocessing_in(path: Path) -> str | None:
    """Return the preprocessing (JSON) in the ``.safetensors`` header of an export, or None."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("preprocessing")
    except Exception:  # a damaged header, which loading the tensors reports
        return None


def _stand_ins(path: Path) -> list[Any]:
    """Return (stand-in, name) for each class name in a torch file that torch would refuse.

    torch's weights-only reader uses the stand-ins instead of the named classes, and imports
    nothing. Functions have no stand-in: a file that calls one is still refused.
    """
    found: dict[str, type] = {name: kind for kind, names in _PLAIN.items() for name in names}
    try:
        if zipfile.is_zipfile(path):
            others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        else:
            others = _names_in_old_file(path)
    except Exception:  # another format, or damaged, which torch.load reports
        others = []
    passed_over = {name: PassedOver.of(name) for name in others}
    return [(kind, name) for name, kind in (passed_over | found).items()]


def _names_in_old_file(path: Path) -> list[str]:
    """Return the names of classes and functions in a torch file from before torch 1.6.

    Such a file starts with four pickles (a magic number, a version, facts about the machine and
    the objects), which are only scanned here. torch takes its own classes before any stand-in.
    """
    names: dict[str, None] = {}
    with path.open("rb") as file:
        for _ in range(4):
            for code, argument, _ in pickletools.genops(file):
                if code.name == "GLOBAL" and isinstance(argument, str):
                    module, _, name = argument.partition(" ")
                    module = "builtins" if module == "__builtin__" else module  # as in Python 2
                    names[f"{module}.{name}"] = None
    return [*names]


def _refuse_bombs(path: Path) -> None:
    """Reject files that decompress to more than their size; torch.save does not compress."""
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            # The format from before torch 1.6, whose storages are uncompressed.
            file.seek(0)
            holds_zeros = _holds(file, _ZEROS)
        else:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
                packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
                if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                    raise DamagedFileError("its compressed data is larger than declared")
                pickles = [archive.read(part) for part in parts if part.filename.endswith(".pkl")]
            holds_zeros = any(_ZEROS in content for content in pickles)
    if holds_zeros:
        raise DamagedFileError("it contains more than tensors and text")


def _holds(file: IO[bytes], wanted: bytes) -> bool:
    end = b""
    while block := file.read(1 << 22):
        if wanted in end + block:
            return True
        end = block[1 - len(wanted) :]
    return False


def _refuse_claims(loaded: Any, size: int) -> None:
    """Reject tensors that claim more bytes than the file has, before their memory is touched."""
    storages: dict[int, int] = {}
    for tensor in _tensors_in(loaded):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise DamagedFileError("it contains tensors that are not plain arrays")
        if tensor.numel() * tensor.itemsize > size:
            raise DamagedFileError("a tensor is larger than its data")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise DamagedFileError("its tensors are larger than their data")


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
    """Copy the module versions of a state dict (``_metadata``), which plain copies lose.

    torchvision's mnasnet refuses a state dict without them.

    Args:
        rename: Function from a module name in ``source``, with a trailing dot, to that in
            ``target``.
    """
    versions = getattr(source, "_metadata", None)
    if isinstance(versions, dict):
        target._metadata = OrderedDict(  # type: ignore[attr-defined]
            (rename(f"{name}.").removesuffix("."), version) for name, version in versions.items()
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
