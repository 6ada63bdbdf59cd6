"""The three formats: how each is written, and how its own runtime answers."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.checkpoint import Metadata
from finetune.errors import ConfigError, ModelError, OutputError
from finetune.exporting.graph import LARGEST_SIDE, SMALLEST_SIDE, Exported, Preprocess
from finetune.model import rebuild
from finetune.run_folder import EXPORTED
from finetune.temperature import probabilities

Answer = Callable[[Tensor], Tensor]
"""Input of the export to probabilities ``(N, classes)``, as its own runtime computes them."""

_OPSET = 20
_MOST_IN_ONE_FILE = 1_800_000_000
"""Bytes of weights: an ONNX file, a single protobuf message, ends at 2 GiB."""
_EXAMPLE = (2, 3, 320, 288)
"""Neither square nor of the network's size: what tracing must not bake in is unlike anything."""


def check_packages(file_format: str) -> None:
    """Fail before any work where a package of the extra is absent.

    Raises:
        ConfigError: says what to install.
    """
    if file_format != "onnx":
        return
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"export: --format onnx needs {name}, which cannot be imported ({error}): "
                "pip install 'finetune-vision[export]'"
            ) from error


def write(
    file_format: str,
    folder: Path,
    network: nn.Module,
    metadata: Metadata,
    about: Mapping[str, str],
    *,
    preprocessing: bool,
) -> tuple[Answer, str, tuple[str, ...]]:
    """Write the file, and open it again in its own runtime.

    Returns:
        How it answers, the name of what answers, and the dimensions that are open.

    Raises:
        ModelError: the network cannot be exported in this format.
    """
    path = folder / EXPORTED[file_format]
    if file_format == "safetensors":
        state = OrderedDict((k, v.contiguous()) for k, v in network.state_dict().items())
        with _saving(path):
            save_file(state, path, metadata=dict(about))
        return _torchvision(path, metadata), "torchvision", ("batch",)
    program = _traced(network, metadata, preprocessing=preprocessing)
    dynamic = ("batch", "height", "width") if preprocessing else ("batch",)
    if file_format == "exported-program":
        with _saving(path):
            torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(about))})
        return _torch_export(path), "torch.export", dynamic
    _save_onnx(program, path, about, dynamic)
    return _onnxruntime(path), "onnxruntime", dynamic


def _traced(
    network: nn.Module, metadata: Metadata, *, preprocessing: bool
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    if preprocessing:
        sides = {"min": SMALLEST_SIDE, "max": LARGEST_SIDE}
        height, width = torch.export.Dim("height", **sides), torch.export.Dim("width", **sides)
        example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
        open_sizes = {0: batch, 2: height, 3: width}
        before: nn.Module | None = Preprocess(metadata.preprocessing)
    else:
        crop = metadata.preprocessing.crop
        example, open_sizes, before = torch.zeros(2, 3, crop, crop), {0: batch}, None
    whole = Exported(network, before, metadata.temperature).eval()
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(whole, (example,), dynamic_shapes={"pixels": open_sizes})
    except Exception as error:  # tracing raises nearly anything
        raise ModelError(
            f"export: {metadata.model_name} cannot be traced by torch.export: {_first(error)}; "
            "--format safetensors works for every network"
        ) from error


def _save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    about: Mapping[str, str],
    dynamic: tuple[str, ...],
) -> None:
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                input_names=["pixels"],
                output_names=["probabilities"],
                verbose=False,
            )
    except Exception as error:  # the converter raises nearly anything
        raise ModelError(
            f"export: this network cannot be written as ONNX: {_first(error)}; --format "
            "exported-program or safetensors may do"
        ) from error
    graph = converted.model.graph
    # The tracer calls sizes s81 and the like; people read the model with a viewer.
    names = dict(zip((0, 2, 3), dynamic, strict=False))
    for value in (*graph.inputs, *graph.outputs):
        shape = value.shape
        for at, name in names.items():
            if at < len(shape) and not isinstance(shape[at], int):
                shape[at] = name
    converted.model.metadata_props.update(about)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    with _saving(path):
        converted.save(path, external_data=size > _MOST_IN_ONE_FILE)


def _onnxruntime(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # each photo is answered in a thread of its own
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"pixels": inputs.numpy()})[0])


def _torch_export(path: Path) -> Answer:
    # Only ever the file that was written a moment ago: opening one may run code.
    with _quiet():
        module = torch.export.load(path).module()

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            shares: Tensor = module(inputs)
        return shares

    return answer


def _torchvision(path: Path, metadata: Metadata) -> Answer:
    """The file's tensors in torchvision's own network, as its reader will have them."""
    network = rebuild(metadata.model_name, len(metadata.class_names), metadata.build_flags).eval()
    state = network.state_dict()
    with safe_open(path, "pt") as file:
        # Into the network's own state dict, which says the versions of its modules: mnasnet
        # refuses one that does not.
        state.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    network.load_state_dict(state)

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return probabilities(network(inputs), metadata.temperature)

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters tell, on stdout and by warnings, what only their developers can use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """A full disk is a RuntimeError to torch, and an error of its own to safetensors."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OutputError(f"export: {path.name}: cannot be written: {_first(error)}") from error


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
