"""Export formats: writing each one, and running it in its own runtime."""

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

from finetune.checkpoints.checkpoint import Metadata
from finetune.checkpoints.run_dir import EXPORTED
from finetune.core.errors import ConfigError, ModelError
from finetune.core.files import unwritable
from finetune.features.both_views import MirrorAveraged
from finetune.inference.calibration import probabilities
from finetune.inference.export.graph import LARGEST_SIDE, SMALLEST_SIDE, Exported, Preprocess
from finetune.models.build import rebuild

Answer = Callable[[Tensor], Tensor]
"""Function from the export's input to probabilities ``(N, classes)``, run by its own runtime."""

_OPSET = 20
_MOST_IN_ONE_FILE = 1_800_000_000
"""Maximum bytes of weights in an ONNX file, a protobuf message limited to 2 GiB."""
_EXAMPLE = (2, 3, 320, 288)
"""Shape of the tracing example; unlike the network's input size and not square, so that a size
that tracing makes constant is noticed."""


def check_packages(file_format: str) -> None:
    """Check that the optional packages of a format can be imported; called before any work.

    Raises:
        ConfigError: a package is missing; the message says what to install.
    """
    if file_format != "onnx":
        return
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"needs the package {name}, which cannot be imported ({error})",
                kind="config.missing_package",
                source="export",
                key="--format onnx",
                to_do="install it with `python -m pip install 'finetune-vision[export]'`",
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
    """Write the exported file, and load it in its own runtime.

    Returns:
        Function that runs the export, name of its runtime, and names of the dynamic dimensions.

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
    if metadata.config.model.average_mirror:
        network = MirrorAveraged(network)
    whole = Exported(network, before, metadata.temperature).eval()
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(whole, (example,), dynamic_shapes={"pixels": open_sizes})
    except Exception as error:  # tracing may raise any exception
        raise ModelError(
            f"{metadata.model_name} cannot be traced by torch.export: {_first(error)}",
            kind="model.cannot_be_exported",
            source="export",
            to_do="use --format safetensors, which supports all networks",
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
    except Exception as error:  # the converter may raise any exception
        raise ModelError(
            f"this network cannot be converted to ONNX: {_first(error)}",
            kind="model.cannot_be_exported",
            source="export",
            to_do="try --format exported-program, or use --format safetensors, which supports all "
            "networks",
        ) from error
    graph = converted.model.graph
    # The tracer's names of dynamic sizes (such as s81) are replaced by readable ones.
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
    options.intra_op_num_threads = 1  # each photo runs in its own thread
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"pixels": inputs.numpy()})[0])


def _torch_export(path: Path) -> Answer:
    # Loading may run code, so this is only used for the file that was just written.
    with _quiet():
        module = torch.export.load(path).module()

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            shares: Tensor = module(inputs)
        return shares

    return answer


def _torchvision(path: Path, metadata: Metadata) -> Answer:
    """Load the file's tensors into torchvision's network, as the README shows."""
    network = rebuild(metadata.model_name, len(metadata.class_names), metadata.build_flags).eval()
    state = network.state_dict()
    with safe_open(path, "pt") as file:
        # The network's own state dict is updated because it has the module versions that mnasnet
        # requires.
        state.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    network.load_state_dict(state)
    if metadata.config.model.average_mirror:
        network = MirrorAveraged(network)

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return probabilities(network(inputs), metadata.temperature)

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs and warnings of torch's exporters."""
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
    """Convert write errors: torch raises RuntimeError on a full disk, safetensors its own error."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise unwritable(path, _first(error)).at(source="export", path=path.name) from error


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
