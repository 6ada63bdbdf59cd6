"""Pretrained weights into a network: read without running code, checked key by key."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from finetune.checkpoint import load_checkpoint
from finetune.errors import ModelError, did_you_mean, first_few
from finetune.files import exists, expand_user, is_file, is_folder, sha256_of
from finetune.model import ModelSpec, is_entry
from finetune.tensor_file import (
    DamagedFileError,
    UnsafeFileError,
    copy_module_versions,
    read_tensors,
)

StateDict = dict[str, Tensor]

_BUNDLED_FILE = "assets/shufflenet_v2_x0_5_bundled.safetensors"
# torchvision's densenet files still name their layers as in 2017: norm.1 for norm1.
_DENSENET_OLD_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\."
    r"((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def load_pretrained(model: nn.Module, spec: ModelSpec) -> None:
    """Fill the network with the weights its spec names; the replaced layers keep their own.

    Raises:
        ModelError: the weights cannot be had, or do not fit.
        CheckpointError: they are of a run of our own, and damaged.
    """
    if spec.weights == "none":
        return
    source, state = _read(spec)
    prefixes = tuple(f"{head}." for head in (spec.family.head, *spec.family.aux_heads))
    if not spec.build_flags.get("aux_logits", False):
        prefixes += tuple(f"{module}." for module in spec.family.aux_modules)
    kept = OrderedDict((k, v) for k, v in state.items() if not k.startswith(prefixes))
    _check_fit(model, kept, source, spec, prefixes)
    copy_module_versions(model.state_dict(), kept)  # for files that state none, as safetensors
    copy_module_versions(state, kept)
    model.load_state_dict(kept, strict=False)


def copy_head_rows(
    model: nn.Module, spec: ModelSpec, kept: Sequence[str], class_names: Sequence[str]
) -> None:
    """Give the new head the rows of an earlier run's, for classes that both have.

    Args:
        kept: Those classes.
        class_names: Of the model.

    Raises:
        CheckpointError: the earlier run's file is damaged.
        ModelError: its head does not fit.
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
                f"model.weights: {path}: damaged: its {key} is no tensor of {expected} finite "
                "numbers"
            )
        with torch.no_grad():
            own[key][[here[name] for name in kept]] = rows[[there[name] for name in kept]]


def _read(spec: ModelSpec) -> tuple[str, StateDict]:
    if spec.weights == "bundled":
        with resources.as_file(resources.files("finetune") / _BUNDLED_FILE) as path:
            return "the bundled weights", load_file(path)
    if is_entry(spec.weights):
        return f"{spec.name} {spec.weights}", _read_entry(spec)
    if spec.earlier is not None:
        return spec.weights, load_checkpoint(spec.earlier.path)[0]
    return spec.weights, read_state_dict(expand_user(spec.weights))


def _read_entry(spec: ModelSpec) -> StateDict:
    """torchvision's own file, from its cache or downloaded; the hash in its name is checked.

    torch checks that hash after a download only, and unpickles what lies in the cache.
    """
    hub = torch.hub.get_dir()
    if hub.startswith("~"):  # no home folder is known: torch would make one named "~" right here
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.hub.set_dir(folder)
                return _read_entry(spec)
            finally:
                torch.hub.set_dir(hub)
    entry = models.get_weight(f"{models.get_model_weights(spec.name).__name__}.{spec.weights}")
    file_name = entry.url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if cached.exists() and not _hash_agrees(cached):
        raise ModelError(
            f"{cached}: damaged or tampered with: its SHA-256 is not the one in its name; "
            "delete it and run again"
        )
    try:
        state: StateDict = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"model.weights: {spec.name} {spec.weights}: {file_name} could not be downloaded "
            f"({_reason(error)}). Put the file at {cached}, or give its path: "
            "--set model.weights=PATH"
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(f"{cached}: holds more than tensors; delete it and run again") from error
    if spec.family.name == "densenet":
        state = OrderedDict((_DENSENET_OLD_KEY.sub(r"\1\2", k), v) for k, v in state.items())
    categories = entry.meta.get("categories")
    head = state.get(f"{spec.family.head}.weight")
    if categories and head is not None and head.shape[0] != len(categories):
        raise ModelError(
            f"{spec.name} {spec.weights}: its layer {spec.family.head} has {head.shape[0]} "
            f"outputs for {len(categories)} categories, so it is not the head; please report this"
        )
    return state


def _hash_agrees(path: Path) -> bool:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if match is None:
        return True
    try:
        return sha256_of(path).startswith(match[1])
    except OSError:  # a folder, or a file that is closed to us
        return False


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason).strip().splitlines()[0] if str(reason).strip() else type(error).__name__


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a ``.pth``/``.pt`` or ``.safetensors`` file.

    Accepts a bare state dict, or one under ``state_dict`` or ``model``, with or without the
    ``module.`` prefix of DataParallel.

    Raises:
        ModelError: no such file, or it holds something else.
    """
    if is_folder(path):
        raise ModelError(f"model.weights: {path}: is a folder, not a file of weights")
    if not exists(path):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")][:1000])
        raise ModelError(
            f"model.weights: {path}: no such file.{near} Paths are relative to the working "
            "directory; DEFAULT, an entry, bundled or none are possible too."
        )
    if not is_file(path):
        raise ModelError(f"model.weights: {path}: is no file that ends, but a pipe or a device")
    loaded = _unpack(_load_tensors(path))
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(f"model.weights: {path}: holds no state dict")
    strangers = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ModelError(
            f"model.weights: {path}: holds no state dict: {strangers[0]!r} is no tensor; "
            "save model.state_dict() and give that file"
        )
    state = OrderedDict((str(k).removeprefix("module."), v) for k, v in loaded.items())
    if all(str(key) in state for key in loaded):
        copy_module_versions(loaded, state)
    return state


def _load_tensors(path: Path) -> Any:
    try:
        return read_tensors(path)
    except UnsafeFileError as error:
        raise ModelError(
            f"model.weights: {path}: cannot be read without running code from it (a pickled "
            "model, or no torch file); save model.state_dict() and give that file"
        ) from error
    except DamagedFileError as error:
        raise ModelError(
            f"model.weights: {path}: damaged, or no file of weights ({error})"
        ) from error


def _unpack(loaded: Any) -> Any:
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return loaded[key]
    return loaded


def _check_fit(
    model: nn.Module, state: StateDict, source: str, spec: ModelSpec, replaced: tuple[str, ...]
) -> None:
    own = model.state_dict()
    # Files from before torch 0.4.1 lack these counters; load_state_dict fills them in.
    wanted = {
        key
        for key in own
        if not key.startswith(replaced) and not key.endswith("num_batches_tracked")
    }
    problems = [
        *_listed("missing", sorted(wanted - state.keys())),
        *_listed("unexpected", sorted(state.keys() - own.keys())),
        *_listed(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in sorted(state.keys() & own.keys())
                if state[key].shape != own[key].shape
            ],
        ),
        *_listed(
            "no floating point numbers",
            [
                key
                for key in sorted(state.keys() & own.keys())
                if own[key].is_floating_point() and not state[key].is_floating_point()
            ],
        ),
        *_listed(
            "not finite",
            [
                key
                for key in sorted(state.keys() & own.keys())
                if state[key].shape == own[key].shape  # what claims another may claim gigabytes
                and state[key].is_floating_point()
                and not bool(torch.isfinite(state[key]).all())
            ],
        ),
    ]
    if problems:
        raise ModelError(
            f"model.weights: {source} does not fit {spec.name}: {'; '.join(problems)}. "
            "Give weights of this very architecture, or set model.name to theirs."
        )


def _listed(kind: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {kind} ({first_few(names, most=4)})"] if names else []
