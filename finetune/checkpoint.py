"""Checkpoints: tensors and one JSON string; reading one runs no code."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from finetune.config import Config, PreprocessingConfig
from finetune.errors import CheckpointError, did_you_mean
from finetune.files import exists, is_folder, write_atomically
from finetune.tensor_file import (
    DamagedFileError,
    UnsafeFileError,
    copy_module_versions,
    read_tensors,
)

FORMAT = 1
"""Version of this file form; raised when an older reader would misunderstand."""


class Frozen(BaseModel):
    """Which parameters were frozen, and by what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[str, ...]
    names: tuple[str, ...]


class Metadata(BaseModel):
    """All that is needed to rebuild, evaluate and rerun; the JSON half of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal[1] = 1
    model_name: str
    build_flags: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: PreprocessingConfig
    config: Config
    freeze_plan: Frozen
    epoch: int
    metrics: dict[str, float | int | None]
    versions: dict[str, str]
    temperature: float | None = Field(default=None, gt=0)
    """What predictions divide logits by, once `eval --calibrate` fitted it."""


def save_checkpoint(path: Path, state: dict[str, Tensor], metadata: Metadata) -> None:
    """Write ``model`` and ``metadata``, whole or not at all.

    ``model`` loads into ``torchvision.models.NAME(num_classes=N, **build_flags)``.

    Raises:
        OutputError: it could not be written.
    """
    # Plain CPU tensors: readable on a machine without the accelerator.
    tensors = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in state.items())
    copy_module_versions(state, tensors)
    content = {"model": tensors, "metadata": metadata.model_dump_json()}
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: it is absent, damaged, of a newer format, or no checkpoint of ours.
    """
    if is_folder(path):
        raise CheckpointError(f"{path}: is a folder; give the file, as in {path / 'best.pt'}")
    if not exists(path):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.pt")][:1000])
        raise CheckpointError(
            f"{path}: no such checkpoint.{near} A run saves its own as runs/NAME/best.pt; "
            "paths are relative to the working directory."
        )
    try:
        content = read_tensors(path)
    except UnsafeFileError as error:
        raise CheckpointError(
            f"{path}: cannot be read without running code from it; it was not made by finetune, "
            "or it is damaged"
        ) from error
    except DamagedFileError as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {error}") from error
    if (
        not isinstance(content, dict)
        or content.keys() != {"model", "metadata"}
        or not isinstance(content["metadata"], str)
        or not isinstance(content["model"], dict)
    ):
        raise CheckpointError(
            f"{path}: no checkpoint of finetune; a bare state dict goes into model.weights"
        )
    return content["model"], _read_metadata(path, content["metadata"])


def _read_metadata(path: Path, text: str) -> Metadata:
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",):
            raise CheckpointError(
                f"{path}: format {first['input']!r} is not format {FORMAT}, which this finetune "
                "reads; upgrade finetune-vision"
            ) from error
        where = ".".join(map(str, first["loc"])) or "its JSON"
        raise CheckpointError(f"{path}: damaged metadata: {where}: {first['msg']}") from error
