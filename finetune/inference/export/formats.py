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
from finetune.checkpoints.limits import Limits
from finetune.checkpoints.run_dir import EXPORTED
from finetune.config.model_registry import family_of
from finetune.core.errors import ConfigError, ModelError
from finetune.core.files import unwritable
from finetune.features.both_views import MirrorAveraged
from finetune.freezing.graph_split import with_head_input
from finetune.inference.calibration import probabilities
from finetune.inference.export.graph import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    Exported,
    ExportedWithLimits,
    Preprocess,
)
from finetune.models.build import rebuild

Answer = Callable[[Tensor], dict[str, Tensor]]
"""Function from the export's input to its outputs by name, run by its own runtime.

``probabilities`` are ``(N, classes)``; an ONNX file may also give ``distance``, ``unlike`` and
``in_set``.
"""

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
    limits: Limits | None = None,
) -> tuple[Answer, str, tuple[str, ...]]:
    """Write the exported file, and load it in its own runtime.

    Args:
        limits: Limits of the network's answers, for outputs that only ONNX files have.

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
    whole = _whole(network, metadata, preprocessing, limits if file_format == "onnx" else None)
    program = _traced(whole, metadata, preprocessing=preprocessing)
    dynamic = ("batch", "height", "width") if preprocessing else ("batch",)
    if file_format == "exported-program":
        with _saving(path):
            torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(about))})
        return _torch_export(path), "torch.export", dynamic
    names = whole.names if isinstance(whole, ExportedWithLimits) else ["probabilities"]
    _save_onnx(program, path, about, dynamic, names)
    return _onnxruntime(path), "onnxruntime", dynamic


def _whole(
    network: nn.Module, metadata: Metadata, preprocessing: bool, limits: Limits | None
) -> Exported | ExportedWithLimits:
    """Return the module to export; without a limit that is known, it has only probabilities."""
    classes = len(metadata.class_names)
    if limits is not None:
        network = with_head_input(network, family_of(metadata.model_name).head)
    if metadata.config.model.average_mirror:
        network = MirrorAveraged(network)
    before = Preprocess(metadata.preprocessing) if preprocessing else None
    exported = Exported(network, before, metadata.temperature)
    return exported if limits is None else ExportedWithLimits(exported, limits, classes)


def _traced(
    whole: nn.Module, metadata: Metadata, *, preprocessing: bool
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    if preprocessing:
        sides = {"min": SMALLEST_SIDE, "max": LARGEST_SIDE}
        height, width = torch.export.Dim("height", **sides), torch.export.Dim("width", **sides)
        example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
        open_sizes = {0: batch, 2: height, 3: width}
    else:
        crop = metadata.preprocessing.crop
        example, open_sizes = torch.zeros(2, 3, crop, crop), {0: batch}
    whole = whole.eval()
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
    outputs: list[str],
) -> None:
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                input_names=["pixels"],
                output_names=outputs,
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
    names = [output.name for output in session.get_outputs()]

    def answer(inputs: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {"pixels": inputs.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return answer


def _torch_export(path: Path) -> Answer:
    # Loading may run code, so this is only used for the file that was just written.
    with _quiet():
        module = torch.export.load(path).module()

    def answer(inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"probabilities": module(inputs)}

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

    def answer(inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"probabilities": probabilities(network(inputs), metadata.temperature)}

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
