"""Frozen hashes: SHA-256 of each frozen tensor, taken before any forward pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.core.errors import ResultError
from finetune.models.norm_layers import keeps_statistics


@dataclass(frozen=True)
class FrozenHashes:
    """Hashes of every frozen parameter, and of every buffer of fully frozen modules."""

    sha256: dict[str, str]
    exempt: tuple[str, ...]
    """Names of buffers that ``freeze.norm_stats: update`` allows to change."""

    @property
    def count(self) -> int:
        """Number of hashed tensors."""
        return len(self.sha256)

    @property
    def digest(self) -> str:
        """SHA-256 over all names and hashes."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()

    def verify(self, state: Mapping[str, Tensor], *, where: str) -> int:
        """Verify a state dict, and return the number of hashed tensors.

        Raises:
            ResultError: A tensor changed or is missing; the message names the first five.
        """
        changed = [
            name
            for name, expected in self.sha256.items()
            if name not in state or hash_tensor(state[name]) != expected
        ]
        if changed:
            shown = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
            raise ResultError(
                f"{len(changed)} of {self.count} frozen tensors changed: {shown}",
                kind="result.frozen_changed",
                path=where,
                to_do="Do not use this result. This is a bug in finetune; please report it",
            )
        return self.count

    def as_begun(self, before: Mapping[str, str]) -> FrozenHashes:
        """Return the hashes in ``before`` of the tensors frozen in this and all earlier stages."""
        return FrozenHashes({n: before[n] for n in self.sha256 if n in before}, self.exempt)


def hash_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 over dtype, shape and bytes of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    # A view as bytes needs at least one dimension, and numpy does not support bfloat16.
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_frozen(model: nn.Module, *, update_norm_stats: bool = False) -> FrozenHashes:
    """Return the hashes of all tensors that training must not change.

    Clones would take as much memory as the tensors; the state dict itself aliases the model and
    would change with it.
    """
    state = model.state_dict()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    exempt: list[str] = []
    for path, module in model.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            full = f"{path}.{name}" if path else name
            if full not in state or not _wholly_frozen(model, path):
                continue
            moves = update_norm_stats and keeps_statistics(module)
            (exempt if moves else frozen).append(full)
    return FrozenHashes({name: hash_tensor(state[name]) for name in frozen}, tuple(exempt))


def _wholly_frozen(model: nn.Module, path: str) -> bool:
    """Whether the nearest module at or above ``path`` with parameters has only frozen ones."""
    while True:
        parameters = list(model.get_submodule(path).parameters())
        if parameters or not path:
            return bool(parameters) and not any(p.requires_grad for p in parameters)
        path = path.rpartition(".")[0]
