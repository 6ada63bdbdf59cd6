"""Initialisation from an earlier finetune run: its checkpoint, frozen parameters and classes."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from finetune.checkpoints.checkpoint import Metadata, load_checkpoint
from finetune.checkpoints.run_dir import BEST
from finetune.checkpoints.safe_load import DamagedFileError, UnsafeFileError, read_tensors
from finetune.core.errors import ConfigError
from finetune.core.files import exists, expand_user, is_file, is_folder, state_of
from finetune.core.text import first_few


@dataclass(frozen=True)
class SourceRun:
    """Checkpoint of an earlier finetune run."""

    path: Path
    metadata: Metadata


def find_source_run(weights: str) -> SourceRun | None:
    """Find the finetune checkpoint at a path to a file or run directory; None if there is none.

    Raises:
        CheckpointError: The checkpoint is damaged or of a newer format.
    """
    path = expand_user(weights)
    if is_folder(path) and exists(path / BEST):
        path = path / BEST
    if not is_file(path):
        return None
    metadata = _metadata_in(path, state_of(path.stat()))
    return None if metadata is None else SourceRun(path, metadata)


@lru_cache(maxsize=4)
def _metadata_in(path: Path, state: str) -> Metadata | None:  # noqa: ARG001
    """Read the metadata of a checkpoint; cached until the file changes (see `state_of`)."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        content = read_tensors(path, mapped=True)
    except (UnsafeFileError, DamagedFileError):
        return None  # reported when its weights are read
    if not isinstance(content, dict) or not isinstance(content.get("metadata"), str):
        return None
    try:
        return Metadata.model_validate_json(content["metadata"])
    except ValidationError:
        load_checkpoint(path)  # raises a worded error
        raise


def freezing_changes(earlier: SourceRun, names: Sequence[str], frozen: Collection[str]) -> str:
    """Describe how the frozen parameters differ from those of an earlier run; empty if equal.

    Args:
        names: Names of all parameters; parameters that only one network has are ignored.
        frozen: Names of the parameters frozen now.
    """
    now = {*frozen}
    before = {*names} & {*earlier.metadata.freeze_plan.names}
    thawed = [name for name in names if name in before and name not in now]
    newly = [name for name in names if name in now and name not in before]
    if not thawed and not newly:
        return ""
    parts = [
        f"{len(thawed):,} that were frozen are trainable ({first_few(thawed)})" if thawed else "",
        f"{len(newly):,} that were trainable are frozen ({first_few(newly)})" if newly else "",
    ]
    patterns = ", ".join(earlier.metadata.freeze_plan.patterns) or "none"
    return (
        f"{earlier.path} was trained with {len(before):,} of {len(names):,} tensors frozen "
        f"(patterns: {patterns}), here {len(now):,} are: {'; '.join(filter(None, parts))}"
    )


def kept_classes(
    earlier: SourceRun | None, keep_head: str, class_names: Sequence[str]
) -> tuple[str, ...]:
    """Return the classes whose head rows are copied: those that the earlier run has by name.

    Args:
        keep_head: Value of ``model.keep_head``.

    Raises:
        ConfigError: Rows should be copied, but there is no earlier run or no common class.
    """
    if keep_head == "none":
        return ()
    if earlier is None:
        raise ConfigError(
            "has no effect, since model.weights is not an existing finetune run",
            kind="config.no_effect",
            key="model.keep_head",
            to_do="remove it",
        )
    before = earlier.metadata.class_names
    known = {*before}
    kept = tuple(name for name in class_names if name in known)
    if not kept:
        raise ConfigError(
            f"none of the {len(class_names):,} classes ({first_few(class_names)}) is among the "
            f"{len(before):,} of {earlier.path} ({first_few(before)})",
            kind="config.no_effect",
            key="model.keep_head",
            to_do="remove it to train a new head",
        )
    return kept
