"""Proof that what is frozen did not change: a SHA-256 of each tensor, taken before any forward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.errors import ResultError
from finetune.train_mode import keeps_statistics


@dataclass(frozen=True)
class Proof:
    """Hashes of every frozen tensor, and of every buffer of modules that are wholly frozen."""

    sha256: dict[str, str]
    exempt: tuple[str, ...]
    """Buffers that ``freeze.norm_stats: update`` allows to move."""

    @property
    def count(self) -> int:
        """Tensors under proof."""
        return len(self.sha256)

    @property
    def digest(self) -> str:
        """SHA-256 over all of them."""
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()

    def verify(self, state: Mapping[str, Tensor], *, where: str) -> int:
        """Compare with a state dict, and return how many tensors agreed: all of them.

        Raises:
            ResultError: names what changed or is missing.
        """
        changed = [
            name
            for name, expected in self.sha256.items()
            if name not in state or hash_tensor(state[name]) != expected
        ]
        if changed:
            shown = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
            raise ResultError(
                f"{where}: {len(changed)} of {self.count} frozen tensors changed: {shown}. "
                "Do not use this result; this must never happen, please report it."
            )
        return self.count

    def as_begun(self, before: Mapping[str, str]) -> Proof:
        """Of what earlier stages of a run left as it was as well, by the hashes taken first."""
        return Proof({n: before[n] for n in self.sha256 if n in before}, self.exempt)


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    # A view as bytes needs at least one dimension, and numpy knows no bfloat16.
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def take_proof(model: nn.Module, *, update_norm_stats: bool = False) -> Proof:
    """Hash what must not change.

    A clone would do as well and cost the memory again; the state dict itself would follow every
    change, since it aliases the model.
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
    return Proof({name: hash_tensor(state[name]) for name in frozen}, tuple(exempt))


def _wholly_frozen(model: nn.Module, path: str) -> bool:
    """Whether the nearest module at or above ``path`` that has parameters has none that train."""
    while True:
        parameters = list(model.get_submodule(path).parameters())
        if parameters or not path:
            return bool(parameters) and not any(p.requires_grad for p in parameters)
        path = path.rpartition(".")[0]
