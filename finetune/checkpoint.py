"""Checkpoints: tensors and JSON, sealed with their SHA-256; reading one runs no code."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from finetune.checkpoint_checks import known_builder, known_flags, plain_names
from finetune.config import Config, PreprocessingConfig
from finetune.data.fingerprint import Fingerprint
from finetune.errors import CheckpointError, did_you_mean
from finetune.files import exists, is_file, is_folder, write_atomically
from finetune.position import Position
from finetune.sealed import forget_pages, is_whole, write_sealed
from finetune.tensor_file import (
    DamagedFileError,
    UnsafeFileError,
    copy_module_versions,
    read_tensors,
)

FORMAT: Final = 2
"""Version of this file form; raised when an older reader would misunderstand.

Files of format 1 hold neither a seal nor a training; they are read all the same.
"""


class Frozen(BaseModel):
    """Which parameters were frozen, and by what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[str, ...]
    names: tuple[str, ...]


class Metadata(BaseModel):
    """All that is needed to rebuild, evaluate and rerun; the JSON half of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal[1, 2] = FORMAT
    model_name: Annotated[str, AfterValidator(known_builder)]
    build_flags: Annotated[dict[str, Any], AfterValidator(known_flags)]
    class_names: Annotated[tuple[str, ...], AfterValidator(plain_names)]
    preprocessing: PreprocessingConfig
    config: Config
    freeze_plan: Frozen
    epoch: int
    """The last one that was evaluated."""
    metrics: dict[str, float | int | None]
    """Of the tensors beside it; empty where they are of the middle of an epoch."""
    versions: dict[str, str]
    temperature: float | None = Field(default=None, ge=0.01, le=100)
    """What predictions divide logits by, once `eval --calibrate` fitted it."""
    temperature_images: str | None = None
    """SHA-256 of the images that it was fitted on; older checkpoints do not say."""


class TrainingRecord(BaseModel):
    """What a run needs to go on, beside tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: Config
    """As it was before anything in it was resolved."""
    position: Position
    records: tuple[dict[str, Any], ...]
    """Lines of ``metrics.jsonl``: of every epoch that was evaluated."""
    data: Fingerprint
    frozen: str
    """SHA-256 over the hashes of what is frozen."""
    threads: int
    """Of torch; a sum depends on how it is shared out."""
    optimizer: dict[str, float | int | bool]
    """What the optimizer remembers in numbers, by parameter and its own word."""
    elapsed_s: float
    resumed_at: tuple[str, ...]
    stages: tuple[dict[str, Any], ...] = ()
    """What became of earlier stages."""
    unchanged: dict[str, str] | None = None
    """Name and SHA-256 of every tensor that earlier stages all left as it was loaded."""
    state_kept: int = 0
    """Parameters of which the optimizer took over the state from the stage before."""


@dataclass(frozen=True)
class Training:
    """The part of ``last.pt`` that a run goes on from; ``tensors`` by kind and name."""

    record: TrainingRecord
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of ours holds; ``model`` is a state dict of the whole network."""

    model: dict[str, Tensor]
    metadata: Metadata
    training: Training | None = None


def save_checkpoint(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    *,
    training: Training | None = None,
    keep: Path | None = None,
) -> None:
    """Write ``model`` and ``metadata``, whole or not at all.

    ``model`` loads into ``torchvision.models.NAME(num_classes=N, **build_flags)``.

    Args:
        keep: What the checkpoint that is replaced is called from then on.

    Raises:
        OutputError: it could not be written, or reads back as something else.
    """
    content: dict[str, Any] = {
        "model": _on_cpu(state),
        "metadata": metadata.model_copy(update={"format": FORMAT}).model_dump_json(),
    }
    if training is not None:
        content["training"] = {
            "record": training.record.model_dump_json(),
            "tensors": _on_cpu(training.tensors),
        }
    write_atomically(
        path,
        lambda file: write_sealed(file, lambda sealed: torch.save(content, sealed)),
        check=_check,
        keep=keep,
    )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Read a network and what it was made by onto the CPU.

    Raises:
        CheckpointError: it is absent, damaged, of a newer format, or no checkpoint of ours.
    """
    found = read_checkpoint(path)
    return found.model, found.metadata


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a whole checkpoint onto the CPU.

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
    if not is_file(path):
        raise CheckpointError(f"{path}: is no file that ends, but a pipe or a device")
    try:
        with path.open("rb") as file:
            whole = is_whole(file)
        content: Any = read_tensors(path) if whole is not False else None
    except UnsafeFileError as error:
        raise CheckpointError(
            f"{path}: cannot be read without running code from it; it was not made by finetune, "
            "or it is damaged"
        ) from error
    except (DamagedFileError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {error}") from error
    if whole is False:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one it was written with")
    if not _is_ours(content):
        raise CheckpointError(
            f"{path}: no checkpoint of finetune; a bare state dict goes into model.weights"
        )
    metadata = _validated(path, Metadata, content["metadata"])
    if metadata.format > 1 and not whole:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is missing")
    training = content.get("training")
    if training is not None:
        record = _validated(path, TrainingRecord, training["record"])
        training = Training(record, training["tensors"])
    return Checkpoint(content["model"], metadata, training)


def replace_metadata(path: Path, metadata: Metadata) -> None:
    """Write a checkpoint again with another description of the same tensors.

    Raises:
        CheckpointError, OutputError.
    """
    found = read_checkpoint(path)
    save_checkpoint(path, found.model, metadata, training=found.training)


def _is_ours(content: Any) -> bool:
    """Whether every part is there and of its kind."""
    if not isinstance(content, dict) or content.keys() - {"training"} != {"model", "metadata"}:
        return False
    training = content.get("training", {"record": "", "tensors": {}})
    return (
        isinstance(content["metadata"], str)
        and _is_tensors(content["model"])
        and isinstance(training, dict)
        and training.keys() == {"record", "tensors"}
        and isinstance(training["record"], str)
        and _is_tensors(training["tensors"])
    )


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items()
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Plain CPU tensors: readable on a machine without the accelerator."""
    plain = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in tensors.items())
    copy_module_versions(tensors, plain)
    return plain


def _check(file: IO[bytes]) -> None:
    forget_pages(file)
    if not is_whole(file):
        raise OSError(errno.EIO, "it reads back as something else than what was written")


def _validated(path: Path, kind: type[BaseModel], text: str) -> Any:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",):
            raise CheckpointError(
                f"{path}: format {first['input']!r} is newer than format {FORMAT}, which this "
                "finetune reads; upgrade finetune-vision"
            ) from error
        where = ".".join(map(str, first["loc"])) or "its JSON"
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{path}: damaged metadata: {where}: {reason}") from error
