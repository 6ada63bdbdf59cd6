"""Module wrapper that runs the trainable part in its compute format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.core.threads import on_cores
from finetune.features.compute_format import ComputeFormat, Runner
from finetune.features.depthwise_backward import straighten
from finetune.features.extractor import CPU_ROWS
from finetune.freezing.graph_split import Features


class AutocastModule(nn.Module):
    """Run the trainable part in a compute format; its weights, inputs and outputs stay float32.

    Args:
        large: Whether a CPU without gradients computes it in micro-batches, one per core, like a
            frozen prefix.
    """

    def __init__(
        self, module: nn.Module, form: ComputeFormat, device: torch.device, *, large: bool = False
    ) -> None:
        super().__init__()
        self.in_pieces = large and device.type == "cpu"
        if form.precision == "bfloat16" and device.type == "cpu":
            straighten(module)
        self.module = form.compile(form.arrange(module, cast=False))
        self.form = form
        self.device_type = device.type

    def forward(self, *features: Tensor) -> Any:
        """Return the module's logits ``(N, num_classes)``, then those of auxiliary heads."""
        if self.in_pieces and not self.training and not torch.is_grad_enabled():
            return torch.cat(on_cores(self._piece, _pieces(features)))
        return self._compute(features)

    @torch.no_grad()  # grad mode is thread-local
    def _piece(self, features: Features) -> Tensor:
        logits = self._compute(features)
        assert isinstance(logits, Tensor)  # in eval mode there are no auxiliary heads
        return logits

    def _compute(self, features: Features) -> Any:
        half = self.form.precision == "bfloat16"
        with torch.autocast(self.device_type, torch.bfloat16, enabled=half):
            output = self.module(*map(self._laid_out, features))
        if isinstance(output, Tensor):
            return output.float()
        return tuple(part.float() for part in output if part is not None)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        return tensor.contiguous(memory_format=self.form.layout)


def _pieces(features: Features) -> list[Features]:
    return list(zip(*(torch.split(tensor, CPU_ROWS) for tensor in features), strict=True))


def training_runner(trainable_part: nn.Module, features: Features, device: torch.device) -> Runner:
    """Return a runner for `choose_format`: forward and backward of copies of the trainable part.

    Its result is a single row, because the logits of one image may all be near zero, so that any
    rounding would give a large relative distance.
    """

    def prepare(form: ComputeFormat) -> Callable[[], Tensor]:
        module = AutocastModule(copy.deepcopy(trainable_part), form, device)

        def step() -> Tensor:
            torch.manual_seed(0)
            output = module(*features)
            logits: Tensor = output if isinstance(output, Tensor) else output[0]
            logits.square().sum().backward()  # type: ignore[no-untyped-call]
            module.zero_grad(set_to_none=True)
            return logits.detach().flatten()[None]

        return step

    return prepare
