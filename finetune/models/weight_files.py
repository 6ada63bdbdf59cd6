"""Weights files of other tools: find the state dict that fits a network, and map its names."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.checkpoints.safe_load import (
    DamagedFileError,
    PassedOver,
    UnsafeFileError,
    copy_module_versions,
    preprocessing_in,
    read_tensors,
)
from finetune.config.model import LARGEST_SIZE
from finetune.core.errors import ModelError
from finetune.core.files import exists, is_file, is_folder, sha256_of
from finetune.core.text import did_you_mean, first_few

StateDict = dict[str, Tensor]

# torchvision renamed modules after some of its files were saved: norm.1 became norm1 in densenet,
# linear_1 and linear_2 became 0 and 3 in the MLP of vit.
_DENSENET_OLD_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\."
    r"((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)
_VIT_OLD_KEY = re.compile(r"^(.*encoder_layer_\d+\.mlp\.)linear_([12])(\.(?:weight|bias))$")
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Path components inserted by torch.compile, FSDP and activation checkpointing."""
_AVERAGED = "n_averaged"
"""Counter that torch.optim.swa_utils.AveragedModel has in addition to its ``module``."""
_AN_AVERAGE = re.compile(r"(?:^|[_.])(?:ema|swa|averaged|teacher)(?:$|[_.])", re.IGNORECASE)
_MOST_NESTED = 3


@dataclass(frozen=True)
class StateIn:
    """State dict found in a file.

    Attributes:
        place: Keys of the containers around it; empty if the file itself is the state dict.
        tensors: The state dict.
    """

    place: tuple[str, ...]
    tensors: Mapping[Any, Any]

    @property
    def is_average(self) -> bool:
        """Whether a container's name says that these are averaged weights (EMA, SWA)."""
        return any(_AN_AVERAGE.search(key) for key in self.place)


@dataclass(frozen=True)
class Fitted:
    """State dict that fits a network best, with the network's names.

    Attributes:
        tensors: Tensors by name in the network.
        left_out: Names of the tensors removed by ``model.leave_out``.
        idle: Patterns that match nothing, neither in the state dict nor in the network.
        notes: Messages about the changes made to the file's content.
    """

    tensors: OrderedDict[str, Tensor]
    left_out: tuple[str, ...]
    idle: tuple[str, ...]
    notes: tuple[str, ...]


def read_states(path: Path, *, mapped: bool = False) -> tuple[StateIn, ...]:
    """Read all state dicts in a ``.pth``/``.pt`` or ``.safetensors`` file, also nested ones.

    Args:
        mapped: Memory-map the tensors, if the file format allows it.

    Raises:
        ModelError: The file is missing or unreadable, or contains no state dict.
    """
    if is_folder(path):
        raise _error("is a folder, not a file of weights", "model.weights_not_a_file", path)
    if not exists(path):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")][:1000])
        raise _error(
            "no such file",
            "model.weights_not_found",
            path,
            f"{near} Paths are relative to the working directory. Other possible values: "
            "DEFAULT, a weights entry, bundled or none",
        )
    if not is_file(path):
        raise _error(
            "is not a regular file, but a pipe or a device", "model.weights_not_a_file", path
        )
    try:
        loaded = read_tensors(path, mapped=mapped, pass_over=True)
    except UnsafeFileError as error:
        raise _unsafe(path, error.refused) from error
    except DamagedFileError as error:
        raise _error(
            f"damaged, or not a file of weights ({error})", "model.weights_damaged", path
        ) from error
    found = tuple(_states_in(loaded))
    if not found:
        values = loaded.values() if isinstance(loaded, dict) else (loaded,)
        objects = [value for value in values if isinstance(value, PassedOver)]
        if objects:
            raise _unsafe(path, objects[0].original)
        raise _error("contains no state dict", "model.no_state_dict", path)
    return found


def _error(what: str, kind: str, path: Path | str, to_do: str = "") -> ModelError:
    return ModelError(what, kind=kind, key="model.weights", path=path, to_do=to_do)


def _unsafe(path: Path, refused: str) -> ModelError:
    reason = f": it needs {refused!r}" if refused else ", or not a torch file"
    return _error(
        f"cannot be read without running code from it (a pickled model or object{reason})",
        "model.weights_unsafe",
        path,
        "save model.state_dict() and give that file",
    )


def _states_in(loaded: Any) -> Iterator[StateIn]:
    """Yield every dictionary of named tensors, outer ones first."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    seen: set[int] = set()
    for place, one in waiting:
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        if any(isinstance(value, Tensor) for key, value in one.items() if isinstance(key, str)):
            yield StateIn(place, one)
        if len(place) < _MOST_NESTED:
            waiting += [((*place, key), v) for key, v in one.items() if isinstance(key, str)]


def best_fit(
    source: str, states: Sequence[StateIn], own: Mapping[str, Tensor], patterns: Sequence[str]
) -> Fitted:
    """Return the state dict with the most tensors of a network, without wrapper names and prefix.

    If several fit equally well, averaged weights (EMA, SWA) are preferred, since training scripts
    evaluate those.

    Args:
        source: Name of the weights in messages.
        states: State dicts in the file.
        own: State dict of the network.
        patterns: Globs of names to leave out, with or without the prefix.

    Raises:
        ModelError: The best state dict contains values other than tensors.
    """

    def score(names: Mapping[str, str], tensors: Mapping[Any, Any]) -> int:
        found = ((own.get(name), tensors[key]) for key, name in names.items())
        return sum(
            mine is not None and isinstance(other, Tensor) and mine.shape == other.shape
            for mine, other in found
        )

    scored: list[tuple[int, StateIn, _Names]] = []
    wholes = [(part, whole) for whole in states for part in (whole, *_parts(whole, patterns))]
    for state, _ in wholes:
        variants = list(_variants(state.tensors, patterns))
        scores = [score(variant.names, state.tensors) for variant in variants]
        # A prefix that only some names share counts only if most of the network then fits.
        scores = [
            number if variant.shared or 2 * number > len(own) else 0
            for number, variant in zip(scores, variants, strict=True)
        ]
        best = scores.index(max(scores))
        scored.append((scores[best], state, variants[best]))
    top, state, chosen = max(scored, key=lambda one: (one[0], one[1].is_average))
    kept = {key: name for key, name in chosen.names.items() if not is_left_out(name, patterns)}
    strangers = [key for key in kept if not isinstance(state.tensors[key], Tensor)]
    if strangers:
        raise _error(
            f"contains no state dict: {strangers[0]!r} is not a tensor",
            "model.no_state_dict",
            source,
            "save model.state_dict() and give that file",
        )
    tensors = OrderedDict((name, state.tensors[key]) for key, name in kept.items())
    whole = next(whole for part, whole in wholes if part is state)
    copy_module_versions(whole.tensors, tensors, rename=chosen.rename)
    left = [chosen.names.get(key, str(key)) for key in state.tensors if key not in kept]
    left = [name for name in left if name.rpartition(".")[2] != _AVERAGED]
    everything = {*map(str, whole.tensors), *chosen.names.values(), *own}
    idle = [glob for glob in patterns if not any(is_left_out(name, [glob]) for name in everything)]
    others = [
        it.place
        for number, it, _ in scored
        if number == top and it is not state and it is not whole
    ]
    notes = [*_notes(state, others if top else []), *chosen.notes]
    if left:
        notes.append(f"{len(left)} tensors are left out ({first_few(left)})")
    return Fitted(tensors, tuple(left), tuple(idle), tuple(notes))


def _parts(state: StateIn, patterns: Sequence[str]) -> tuple[StateIn, ...]:
    """Split a state dict by the first components of its names, if one of them is of an average.

    Modules that hold a network and its average beside each other are saved like this.
    """
    parts: dict[str, dict[Any, Any]] = {}
    for key, value in state.tensors.items():
        first, dot, _ = _WRAPPERS.sub("", str(key)).partition(".")
        if dot and not is_left_out(str(key), patterns):
            parts.setdefault(first, {})[key] = value
    if len(parts) < 2 or not any(_AN_AVERAGE.search(first) for first in parts):
        return ()
    return tuple(StateIn((*state.place, first), part) for first, part in parts.items())


def _notes(state: StateIn, others: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not state.place:
        return
    note = f"the tensors under {'.'.join(state.place)!r} are taken"
    if others:
        listed = first_few(repr(".".join(place)) for place in others)
        why = "a moving average" if state.is_average else "the first of those that fit"
        note += f", {why}, and not those under {listed}"
    yield note


def is_left_out(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern of ``model.leave_out`` matches a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class _Names:
    """Names of a state dict's tensors in a network, by key of the state dict."""

    names: dict[Any, str]
    shared: bool
    """Whether all names had the removed prefix."""
    rename: Callable[[str], str]
    notes: tuple[str, ...]


def _variants(keys: Iterable[Any], patterns: Sequence[str]) -> Iterator[_Names]:
    """Yield the names without wrappers, then also without each successive most common prefix."""
    names = {key: str(key) for key in keys if not is_left_out(str(key), patterns)}
    notes: tuple[str, ...] = ()
    names = _unless_two_become_one(names, _upgraded)
    unwrapped = _unless_two_become_one(names, lambda name: _WRAPPERS.sub("", name))
    changed = [name for key, name in names.items() if unwrapped[key] != name]
    if changed:
        notes = (f"the names of wrappers are removed, as from {changed[0]!r}",)
    names, prefix, shared = unwrapped, "", True
    while True:
        removed = _removed(unwrapped, names) if prefix else ()
        yield _Names(names, shared, _remover(prefix), (*notes, *removed))
        names = {key: name for key, name in names.items() if name != _AVERAGED}
        heads = Counter(name.partition(".")[0] for name in names.values() if "." in name)
        if not heads or prefix.count(".") == _MOST_NESTED + 1:
            return
        first = f"{heads.most_common(1)[0][0]}."
        shared = shared and all(name.startswith(first) for name in names.values())
        names = _unless_two_become_one(names, _remover(first))
        prefix += first


def _removed(before: Mapping[Any, str], after: Mapping[Any, str]) -> tuple[str, ...]:
    """Note each prefix that was removed, with the number of names that had it."""
    prefixes = Counter(before[key].removesuffix(name) for key, name in after.items())
    return tuple(
        f"the prefix {prefix!r} of {number} names is removed"
        for prefix, number in prefixes.items()
        if prefix
    )


def _remover(prefix: str) -> Callable[[str], str]:
    return lambda name: _WRAPPERS.sub("", name).removeprefix(prefix)


def _unless_two_become_one(names: dict[Any, str], change: Callable[[str], str]) -> dict[Any, str]:
    changed = {key: change(name) for key, name in names.items()}
    return changed if len({*changed.values()}) == len({*names.values()}) else names


def _upgraded(name: str) -> str:
    """Convert an old name to that of torchvision's current modules."""
    name = _DENSENET_OLD_KEY.sub(r"\1\2", name)
    old = _VIT_OLD_KEY.match(name)
    return name if old is None else f"{old[1]}{'0' if old[2] == '1' else '3'}{old[3]}"


# Facts about a weights file, read without loading it into a network


@dataclass(frozen=True)
class About:
    """Facts about a weights file.

    Attributes:
        sha256: SHA-256 of the file.
        image_size: Input side of a vision transformer in pixels, from its position embedding.
        preprocessing: Preprocessing (JSON) in the header of a finetune export.
    """

    sha256: str
    image_size: int | None
    preprocessing: str | None


def about(path: Path, *, fixed_size: bool) -> About | None:
    """Return the facts about a weights file; None if it cannot be read.

    Args:
        fixed_size: Whether the weights determine the input size, which is then read as well.
    """
    if not is_file(path):
        return None
    status = path.stat()
    return _about(path, fixed_size, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)
def _about(path: Path, fixed_size: bool, state: tuple[int, int]) -> About | None:  # noqa: ARG001
    """Read the facts; cached until modification time or size of the file change."""
    try:
        size = _image_size(read_states(path, mapped=True)) if fixed_size else None
        return About(sha256_of(path), size, preprocessing_in(path))
    except (OSError, ModelError):
        return None


def _image_size(states: Sequence[StateIn]) -> int | None:
    for state in states:
        positions = _ending(state, "encoder.pos_embedding")
        patches = _ending(state, "conv_proj.weight")
        if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
            continue
        side = isqrt(max(positions.shape[1] - 1, 0))  # minus one for the class token
        size = side * int(patches.shape[2])
        if side * side == positions.shape[1] - 1 and 0 < size <= LARGEST_SIZE:
            return size
    return None


def _ending(state: StateIn, name: str) -> Tensor | None:
    found = (
        value
        for key, value in state.tensors.items()
        if isinstance(value, Tensor) and f".{key}".endswith(f".{name}")
    )
    return next(found, None)
