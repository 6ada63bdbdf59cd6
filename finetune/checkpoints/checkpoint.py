"""Checkpoint files: tensors and JSON with a SHA-256 checksum; loading one executes no code."""

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

from finetune.checkpoints.checksum import forget_pages, has_valid_checksum, write_with_checksum
from finetune.checkpoints.limits import Limits, LimitsRecord
from finetune.checkpoints.metadata_validation import known_builder, known_flags, plain_names
from finetune.checkpoints.run_dir import no_such_checkpoint
from finetune.checkpoints.safe_load import (
    DamagedFileError,
    UnsafeFileError,
    copy_module_versions,
    read_tensors,
)
from finetune.checkpoints.train_progress import TrainProgress
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, PreprocessingConfig
from finetune.core.errors import CheckpointError
from finetune.core.files import exists, is_file, is_folder, write_atomically
from finetune.data.fingerprint import Fingerprint

FORMAT: Final = 2
"""Version of the file format; incremented when older readers would misinterpret new files.

Files of format 1 contain neither a checksum nor a train state; they can still be read.
"""


class Frozen(BaseModel):
    """Frozen parameters and the patterns that froze them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[str, ...]
    names: tuple[str, ...]


class Metadata(BaseModel):
    """JSON part of a checkpoint: what is needed to rebuild, evaluate and rerun the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal[1, 2] = FORMAT
    model_name: Annotated[str, AfterValidator(known_builder)]
    build_flags: Annotated[dict[str, Any], AfterValidator(known_flags)]
    class_names: Annotated[tuple[str, ...], AfterValidator(plain_names)]
    preprocessing: PreprocessingConfig
    config: PlannedConfig
    """Config of the stage, and of all stages; those that had not begun are planned alone."""
    freeze_plan: Frozen
    epoch: int
    """Last evaluated epoch."""
    metrics: dict[str, float | int | None]
    """Validation metrics of the weights in this checkpoint; empty in the middle of an epoch."""
    versions: dict[str, str]
    temperature: float | None = Field(default=None, ge=0.01, le=100)
    """Temperature by which predictions divide logits; fitted by `eval --calibrate`, else None."""
    temperature_images: str | None = None
    """SHA-256 of the images that the temperature was fitted on; None in older checkpoints."""


class TrainingRecord(BaseModel):
    """JSON part of the train state, from which a run resumes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: Config
    """Config as given, before ``auto`` values were resolved."""
    position: TrainProgress
    """Epoch, batch and step counters."""
    records: tuple[dict[str, Any], ...]
    """Lines of ``metrics.jsonl``, one per evaluated epoch."""
    data: Fingerprint
    frozen: str
    """SHA-256 over the frozen hashes."""
    threads: int
    """Number of torch threads; the last digits of sums depend on it."""
    processes: int = 1
    """Number of processes that shared each batch."""
    optimizer: dict[str, float | int | bool]
    """Scalar values of the optimizer state, by parameter and the optimizer's own key."""
    elapsed_s: float
    resumed_at: tuple[str, ...]
    stages: tuple[dict[str, Any], ...] = ()
    """Results of earlier stages."""
    unchanged: dict[str, str] | None = None
    """Frozen hashes (name to SHA-256) of the tensors that all earlier stages left unchanged."""
    state_kept: int = 0
    """Number of parameters whose optimizer state was carried over from the previous stage."""


@dataclass(frozen=True)
class Training:
    """Train state in ``last.pt``, from which a run resumes; ``tensors`` by kind and name."""

    record: TrainingRecord
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file; ``model`` is a state dict of the whole network."""

    model: dict[str, Tensor]
    metadata: Metadata
    training: Training | None = None
    limits: Limits | None = None


def save_checkpoint(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    *,
    training: Training | None = None,
    limits: Limits | None = None,
    keep: Path | None = None,
) -> None:
    """Write a checkpoint atomically, and verify its checksum.

    The state dict loads into ``torchvision.models.NAME(num_classes=N, **build_flags)``.

    Args:
        path: File to write.
        state: State dict of the whole network.
        training: Train state, for ``last.pt``.
        limits: Limits of the network's answers; None if they are not known.
        keep: Path to which an existing checkpoint at ``path`` is renamed.

    Raises:
        OutputError: The file cannot be written, or its checksum is wrong when it is read back.
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
    if limits is not None:
        content["limits"] = {
            "record": limits.record.model_dump_json(),
            "tensors": _on_cpu(limits.tensors),
        }
    write_atomically(
        path,
        lambda file: write_with_checksum(file, lambda sealed: torch.save(content, sealed)),
        check=_check,
        keep=keep,
    )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Load the state dict and the metadata of a checkpoint onto the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, of a newer format, or no finetune checkpoint.
    """
    found = read_checkpoint(path)
    return found.model, found.metadata


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint, including its train state, onto the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, of a newer format, or no finetune checkpoint.
    """
    if is_folder(path):
        raise CheckpointError(
            "is a folder",
            kind="checkpoint.not_a_file",
            path=path,
            to_do=f"give the file, as in {path / 'best.pt'}",
        )
    if not exists(path):
        raise no_such_checkpoint(path)
    if not is_file(path):
        raise CheckpointError(
            "is not a regular file, but a pipe or a device",
            kind="checkpoint.not_a_file",
            path=path,
        )
    try:
        with path.open("rb") as file:
            whole = has_valid_checksum(file)
        content: Any = read_tensors(path) if whole is not False else None
    except UnsafeFileError as error:
        raise CheckpointError(
            "cannot be read without running code from it; it is damaged, or was not written by "
            "finetune",
            kind="checkpoint.unsafe",
            path=path,
        ) from error
    except (DamagedFileError, OSError) as error:
        raise CheckpointError(
            f"damaged, or not a checkpoint: {error}", kind="checkpoint.damaged", path=path
        ) from error
    if whole is False:
        raise CheckpointError(
            "damaged: its SHA-256 differs from the recorded one",
            kind="checkpoint.damaged",
            path=path,
        )
    if not _is_ours(content):
        raise CheckpointError(
            "not a finetune checkpoint",
            kind="checkpoint.foreign",
            path=path,
            to_do="to train from a bare state dict, set model.weights to it",
        )
    metadata = _validated(path, Metadata, content["metadata"])
    if metadata.format > 1 and not whole:
        raise CheckpointError(
            "damaged: its SHA-256 is missing", kind="checkpoint.damaged", path=path
        )
    training = content.get("training")
    if training is not None:
        record = _validated(path, TrainingRecord, training["record"])
        training = Training(record, training["tensors"])
    limits = content.get("limits")
    if limits is not None:
        record = _validated(path, LimitsRecord, limits["record"])
        try:
            limits = Limits.of(record, limits["tensors"])
        except ValueError as error:
            raise CheckpointError(
                f"damaged: {error}", kind="checkpoint.damaged", path=path
            ) from error
    return Checkpoint(content["model"], metadata, training, limits)


def replace_limits(path: Path, metadata: Metadata, limits: Limits | None) -> None:
    """Rewrite a checkpoint with new metadata and limits; its other tensors are unchanged.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        OutputError: It cannot be written.
    """
    found = read_checkpoint(path)
    save_checkpoint(path, found.model, metadata, training=found.training, limits=limits)


def _is_ours(content: Any) -> bool:
    """Whether all parts of a checkpoint are present and have the right types."""
    if not isinstance(content, dict):
        return False
    more = [content[name] for name in ("training", "limits") if name in content]
    return (
        content.keys() - {"training", "limits"} == {"model", "metadata"}
        and isinstance(content["metadata"], str)
        and _is_tensors(content["model"])
        and all(map(_is_part, more))
    )


def _is_part(value: Any) -> bool:
    """Whether an optional part of a checkpoint is a record and tensors."""
    return (
        isinstance(value, dict)
        and value.keys() == {"record", "tensors"}
        and isinstance(value["record"], str)
        and _is_tensors(value["tensors"])
    )


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items()
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Copy tensors to the CPU, so that machines without the accelerator can read them."""
    plain = OrderedDict((key, value.detach().cpu().contiguous()) for key, value in tensors.items())
    copy_module_versions(tensors, plain)
    return plain


def _check(file: IO[bytes]) -> None:
    forget_pages(file)
    if not has_valid_checksum(file):
        raise OSError(errno.EIO, "it reads back as something else than what was written")


def _validated(path: Path, kind: type[BaseModel], text: str) -> Any:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",):
            raise CheckpointError(
                f"format {first['input']!r} is newer than format {FORMAT}, which this finetune "
                "reads",
                kind="checkpoint.newer_format",
                path=path,
                to_do="upgrade finetune-vision",
            ) from error
        where = ".".join(map(str, first["loc"])) or "its JSON"
        own = first.get("ctx", {}).get("error")  # raised by a validator of this package
        reason = first["msg"] if own is None else str(own)
        raise CheckpointError(
            f"damaged metadata: {where}: {reason}", kind="checkpoint.damaged", path=path
        ) from error
