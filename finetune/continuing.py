"""A run of our own as the weights that another one begins with: its file, and what it froze."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from finetune.checkpoint import Metadata, load_checkpoint
from finetune.errors import ConfigError, first_few
from finetune.files import exists, expand_user, is_file, is_folder, state_of
from finetune.run_folder import BEST
from finetune.tensor_file import DamagedFileError, UnsafeFileError, read_tensors


@dataclass(frozen=True)
class Earlier:
    """A checkpoint of our own, by its file."""

    path: Path
    metadata: Metadata


def earlier_run(weights: str) -> Earlier | None:
    """The checkpoint of our own that a path names, itself or as a run's folder; None for a file of
    anything else, or none at all.

    Raises:
        CheckpointError: it is of a newer format, or damaged.
    """
    path = expand_user(weights)
    if is_folder(path) and exists(path / BEST):
        path = path / BEST
    if not is_file(path):
        return None
    metadata = _metadata_in(path, state_of(path.stat()))
    return None if metadata is None else Earlier(path, metadata)


@lru_cache(maxsize=4)
def _metadata_in(path: Path, state: str) -> Metadata | None:  # noqa: ARG001
    """A file is read once for as long as its state (`state_of`) stays the same."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        content = read_tensors(path, mapped=True)
    except (UnsafeFileError, DamagedFileError):
        return None  # whoever reads its weights says what is wrong
    if not isinstance(content, dict) or not isinstance(content.get("metadata"), str):
        return None
    try:
        return Metadata.model_validate_json(content["metadata"])
    except ValidationError:
        load_checkpoint(path)  # puts into words what is wrong
        raise


def freezing_changes(earlier: Earlier, names: Sequence[str], frozen: Collection[str]) -> str:
    """How what is frozen differs from what the run before froze, in words; empty where it does not.

    Args:
        names: Of all parameters; those that only one of the two networks has do not count.
    """
    now = {*frozen}
    before = {*names} & {*earlier.metadata.freeze_plan.names}
    thawed = [name for name in names if name in before and name not in now]
    newly = [name for name in names if name in now and name not in before]
    if not thawed and not newly:
        return ""
    parts = [
        f"{len(thawed):,} that were frozen train ({first_few(thawed)})" if thawed else "",
        f"{len(newly):,} that trained are frozen ({first_few(newly)})" if newly else "",
    ]
    patterns = ", ".join(earlier.metadata.freeze_plan.patterns) or "none"
    return (
        f"{earlier.path} was trained with {len(before):,} of {len(names):,} tensors frozen "
        f"(patterns: {patterns}), here {len(now):,} are: {'; '.join(filter(None, parts))}"
    )


def kept_classes(
    earlier: Earlier | None, keep_head: str, class_names: Sequence[str]
) -> tuple[str, ...]:
    """The classes whose rows of the head are kept: those that the earlier run has by name.

    Args:
        keep_head: As ``model.keep_head``.

    Raises:
        ConfigError: rows are to be kept, and there are none.
    """
    if keep_head == "none":
        return ()
    if earlier is None:
        raise ConfigError(
            "model.keep_head: has no effect: model.weights names no run of finetune that is there, "
            "whose head would know its classes by name; remove the line"
        )
    before = earlier.metadata.class_names
    known = {*before}
    kept = tuple(name for name in class_names if name in known)
    if not kept:
        raise ConfigError(
            f"model.keep_head: none of the {len(class_names):,} classes ({first_few(class_names)}) "
            f"is among the {len(before):,} of {earlier.path} ({first_few(before)}); remove the "
            "line, and the head is new"
        )
    return kept
