"""Loading of pretrained weights: without executing code, with a check of every key."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.checkpoints.safe_load import copy_module_versions
from finetune.core.errors import ConfigError, ModelError
from finetune.core.files import expand_user, sha256_of
from finetune.core.text import did_you_mean, first_few
from finetune.models.build import ModelSpec, is_entry
from finetune.models.weight_files import (
    Fitted,
    StateDict,
    StateIn,
    best_fit,
    is_left_out,
    read_states,
)

_BUNDLED_FILE = "models/assets/shufflenet_v2_x0_5_bundled.safetensors"


def load_pretrained(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    """Load the pretrained weights of a spec into a network; replaced layers keep their values.

    Returns:
        Messages about the changes that made the content of a weights file fit.

    Raises:
        ModelError: The weights cannot be downloaded or read, or do not fit.
        ConfigError: A pattern of ``model.leave_out`` matches nothing.
        CheckpointError: The checkpoint of an earlier finetune run is damaged.
    """
    if spec.weights == "none":
        return ()
    source, states = _read(spec)
    own = model.state_dict()
    fitted = best_fit(source, states, own, spec.leave_out)
    _refuse_idle_patterns(fitted, own)
    prefixes = tuple(f"{head}." for head in (spec.family.head, *spec.family.aux_heads))
    if not spec.build_flags.get("aux_logits", False):
        prefixes += tuple(f"{module}." for module in spec.family.aux_modules)
    kept = OrderedDict((k, v) for k, v in fitted.tensors.items() if not k.startswith(prefixes))
    _check_fit(own, kept, source, spec, prefixes)
    copy_module_versions(own, kept)  # for files without versions, such as safetensors
    copy_module_versions(fitted.tensors, kept)
    model.load_state_dict(kept, strict=False)
    return tuple(f"weights {source}: {note}" for note in fitted.notes)


def _refuse_idle_patterns(fitted: Fitted, own: Collection[str]) -> None:
    for pattern in fitted.idle:
        near = did_you_mean(pattern, [*dict.fromkeys([*fitted.tensors, *own])])
        raise ConfigError(
            f"{pattern!r} matches no tensor of the weights or of the network",
            kind="config.pattern_matches_nothing",
            key="model.leave_out",
            to_do=f"{near} Remove or correct it" if near else "remove or correct it",
        )


def copy_head_rows(
    model: nn.Module, spec: ModelSpec, kept: Sequence[str], class_names: Sequence[str]
) -> None:
    """Copy the head rows of classes that the earlier run has as well.

    Args:
        kept: Classes whose rows are copied.
        class_names: Class names of the new model.

    Raises:
        CheckpointError: The earlier run's checkpoint is damaged.
        ModelError: Its head does not have the expected shape.
    """
    assert spec.earlier is not None
    path, before = spec.earlier.path, spec.earlier.metadata.class_names
    state, _ = load_checkpoint(path)
    own = dict(model.named_parameters())
    there = {name: row for row, name in enumerate(before)}
    here = {name: row for row, name in enumerate(class_names)}
    for key in (f"{head}.{part}" for head in spec.heads for part in ("weight", "bias")):
        if key not in own:  # maxvit's head has no bias
            continue
        expected = (len(before), *own[key].shape[1:])
        rows = state.get(key)
        if rows is None or rows.shape != expected or not bool(torch.isfinite(rows).all()):
            raise ModelError(
                f"damaged: its {key} is not a tensor of {expected} finite numbers",
                kind="model.weights_damaged",
                key="model.weights",
                path=path,
            )
        with torch.no_grad():
            own[key][[here[name] for name in kept]] = rows[[there[name] for name in kept]]


def _read(spec: ModelSpec) -> tuple[str, tuple[StateIn, ...]]:
    if spec.weights == "bundled":
        with resources.as_file(resources.files("finetune") / _BUNDLED_FILE) as path:
            return "the bundled weights", (StateIn((), load_file(path)),)
    if is_entry(spec.weights):
        return f"{spec.name} {spec.weights}", (StateIn((), fetch_entry(spec)),)
    if spec.earlier is not None:
        return spec.weights, (StateIn((), load_checkpoint(spec.earlier.path)[0]),)
    return spec.weights, read_states(expand_user(spec.weights))


def fetch_entry(spec: ModelSpec, *, kept: bool = True) -> StateDict:
    """Load torchvision's weights, cached or downloaded, and verify the hash in the file name.

    torch verifies that hash only after a download, and unpickles cached files unchecked.

    Args:
        kept: Whether torch's download cache outlives this call.
    """
    hub = torch.hub.get_dir()
    if hub.startswith("~"):  # no home directory: torch would create one named "~" here
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.hub.set_dir(folder)
                return fetch_entry(spec, kept=False)
            finally:
                torch.hub.set_dir(hub)
    entry = models.get_weight(f"{models.get_model_weights(spec.name).__name__}.{spec.weights}")
    file_name = entry.url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if cached.exists() and not _hash_agrees(cached):
        raise ModelError(
            "damaged or modified: its SHA-256 is not the one in its name",
            kind="model.weights_damaged",
            path=cached,
            to_do="delete it and run again",
        )
    try:
        state: StateDict = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        place = f"Put the file at `{cached}`" if kept else "Set HOME or TORCH_HOME"
        raise ModelError(
            f"{spec.name} {spec.weights}: {file_name} could not be downloaded ({_reason(error)})",
            kind="model.download_failed",
            key="model.weights",
            to_do=f"{place}, or give the file's path: --set model.weights=PATH",
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            "contains more than tensors",
            kind="model.weights_unsafe",
            path=cached,
            to_do="delete it and run again",
        ) from error
    categories = entry.meta.get("categories")
    head = state.get(f"{spec.family.head}.weight")
    if categories and head is not None and head.shape[0] != len(categories):
        raise ModelError(
            f"{spec.name} {spec.weights}: layer {spec.family.head} has {head.shape[0]} outputs for "
            f"{len(categories)} categories, so it is not the head",
            kind="model.unknown_head",
            to_do="please report this",
        )
    return state


def _hash_agrees(path: Path) -> bool:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if match is None:
        return True
    try:
        return sha256_of(path).startswith(match[1])
    except OSError:  # a directory, or a file without read permission
        return False


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason).strip().splitlines()[0] if str(reason).strip() else type(error).__name__


def _check_fit(
    own: StateDict, state: StateDict, source: str, spec: ModelSpec, replaced: tuple[str, ...]
) -> None:
    # Files from before torch 0.4.1 lack num_batches_tracked; load_state_dict adds it.
    wanted = {
        key
        for key in own
        if not key.startswith(replaced)
        and not key.endswith("num_batches_tracked")
        and not is_left_out(key, spec.leave_out)
    }
    both = sorted(state.keys() & own.keys())
    missing = sorted(wanted - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshaped = [key for key in both if state[key].shape != own[key].shape]
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in misshaped
            ],
        ),
        *_listed(
            "not floating point",
            [
                key
                for key in both
                if own[key].is_floating_point() and not state[key].is_floating_point()
            ],
        ),
        *_listed(
            "not finite",
            [
                key
                for key in both
                if state[key].shape == own[key].shape  # a wrong shape may claim gigabytes
                and state[key].is_floating_point()
                and not bool(torch.isfinite(state[key]).all())
            ],
        ),
    ]
    if problems:
        fitting = wanted - {*missing, *misshaped}
        patterns = _foreign(spec, fitting, misfits=[*missing, *misshaped], unexpected=unexpected)
        remedy = "Give weights of this architecture, or set model.name to theirs"
        if patterns:
            remedy = (
                "The other tensors fit: if these belong to a head of another tool, leave them out "
                f"with model.leave_out: [{', '.join(json.dumps(p) for p in patterns)}]"
            )
        raise ModelError(
            f"{source} does not fit {spec.name}: {'; '.join(problems)}",
            kind="model.weights_do_not_fit",
            key="model.weights",
            to_do=remedy,
        )


def _foreign(
    spec: ModelSpec, fitting: Collection[str], *, misfits: Sequence[str], unexpected: Sequence[str]
) -> list[str]:
    """Globs of all tensors that do not fit, if all of them belong to the head; else empty."""
    area = f"{spec.family.head.partition('.')[0]}."
    if not fitting or not all(name.startswith(area) for name in misfits):
        return []
    return [*dict.fromkeys(_shortest_glob(name, fitting) for name in [*unexpected, *misfits])]


def _shortest_glob(name: str, fitting: Collection[str]) -> str:
    """Glob of the outermost module around a name that contains no fitting tensor."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        module = f"{'.'.join(parts[:end])}."
        if not any(other.startswith(module) for other in fitting):
            return f"{module}*"
    return name


def _listed(kind: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {kind} ({first_few(names, most=4)})"] if names else []
