"""What trains, in a form of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.computation import CPU_ROWS
from finetune.depthwise import straighten
from finetune.form import Form, Runner
from finetune.runtime import on_cores
from finetune.split import Features


class InForm(nn.Module):
    """A live part that computes in a form; its weights, what it takes and gives are float32.

    Args:
        large: Without gradients, a CPU computes it in pieces, as it computes a frozen prefix.
    """

    def __init__(
        self, module: nn.Module, form: Form, device: torch.device, *, large: bool = False
    ) -> None:
        super().__init__()
        self.in_pieces = large and device.type == "cpu"
        if form.precision == "bfloat16" and device.type == "cpu":
            straighten(module)
        self.module = form.compile(form.arrange(module, cast=False))
        self.form = form
        self.device_type = device.type

    def forward(self, features: Features) -> Any:
        """As the module: logits ``(N, num_classes)``, auxiliary ones after them."""
        if self.in_pieces and not self.training and not torch.is_grad_enabled():
            return torch.cat(on_cores(self._piece, list(_pieces(features))))
        return self._compute(features)

    @torch.no_grad()  # a thread has a grad mode of its own
    def _piece(self, features: Features) -> Tensor:
        logits = self._compute(features)
        assert isinstance(logits, Tensor)  # in eval mode there are no auxiliary heads
        return logits

    def _compute(self, features: Features) -> Any:
        if isinstance(features, Tensor):
            inputs: Features = self._laid_out(features)
        else:
            inputs = tuple(self._laid_out(tensor) for tensor in features)
        half = self.form.precision == "bfloat16"
        with torch.autocast(self.device_type, torch.bfloat16, enabled=half):
            output = self.module(inputs)
        if isinstance(output, Tensor):
            return output.float()
        return tuple(part.float() for part in output if part is not None)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        return tensor.contiguous(memory_format=self.form.layout)


def _pieces(features: Features) -> Iterable[Features]:
    if isinstance(features, Tensor):
        return torch.split(features, CPU_ROWS)
    return zip(*(torch.split(tensor, CPU_ROWS) for tensor in features), strict=True)


def training_runner(live: nn.Module, features: Features, device: torch.device) -> Runner:
    """For `choose_form`: forward and backward of copies of a live part.

    Its result is one row: two logits of one image may both be near zero, and so their distance
    large for any rounding.
    """

    def prepare(form: Form) -> Callable[[], Tensor]:
        module = InForm(copy.deepcopy(live), form, device)

        def step() -> Tensor:
            torch.manual_seed(0)
            output = module(features)
            logits: Tensor = output if isinstance(output, Tensor) else output[0]
            logits.square().sum().backward()  # type: ignore[no-untyped-call]
            module.zero_grad(set_to_none=True)
            return logits.detach().flatten()[None]

        return step

    return prepare
