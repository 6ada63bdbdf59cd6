"""Optimizer step over one or several batches, in as few micro-batches as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from finetune.checkpoints.train_progress import TrainProgress
from finetune.core.device import seed_generators
from finetune.core.errors import FinetuneError, NotFiniteError
from finetune.core.memory import is_out_of_memory
from finetune.core.seeding import seed_for
from finetune.freezing.graph_split import Features
from finetune.training.loss import Loss
from finetune.training.metrics import Meter

Batch = tuple[Features, Tensor]
"""Model input and labels, as described in `finetune.training.loop.train_epochs`."""

_CHECK_EVERY = 64
"""Number of values that accumulate on a GPU before they are copied to the CPU and checked."""

_FEWEST_AT_ONCE = 2
"""Smallest micro-batch: norm layers cannot train on one image."""


class FiniteCheck:
    """Check that raises on a loss or a gradient that is not finite.

    On a CPU it raises immediately, before any weight changes. Other devices would have to
    synchronize for each value, so there the values of several steps are checked together.
    """

    def __init__(self, device: torch.device) -> None:
        self._at_once = device.type == "cpu"
        self._waiting: list[tuple[Tensor, NotFiniteError]] = []

    def add(self, value: Tensor, error: NotFiniteError) -> None:
        """Check a value, at once on a CPU and later on other devices.

        Raises:
            NotFiniteError: ``error``, or that of an earlier value.
        """
        if self._at_once:
            if not math.isfinite(value.item()):
                raise error
            return
        self._waiting.append((value.detach(), error))
        if len(self._waiting) >= _CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Check every pending value.

        Raises:
            NotFiniteError: error of the first value that is not finite.
        """
        waiting, self._waiting = self._waiting, []
        if waiting:
            finite = torch.stack([value for value, _ in waiting]).isfinite().tolist()
            for good, (_, error) in zip(finite, waiting, strict=True):
                if not good:
                    raise error


@dataclass(frozen=True)
class StepConfig:
    """Options of optimizer steps.

    Attributes:
        seed: Seed of dropout and other randomness of the steps.
        accumulate: Number of batches per optimizer step; an epoch's last step may have fewer.
        clip_norm: Maximum gradient norm over all parameters together; None for no clipping.
    """

    seed: int
    accumulate: int = 1
    clip_norm: float | None = None


class Step:
    """Optimizer step on the gradient of the mean loss over all images of its batches.

    Batches are weighted by their number of images. Norm layers in train mode process each batch,
    or micro-batch, separately. When memory runs out, their running statistics are updated twice
    for the batches processed before, since restoring them would cost a copy in every step.

    Args:
        loss: Loss of the model's outputs.
        warn: Function that receives a message when memory runs out and smaller micro-batches are
            used from then on.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        config: StepConfig,
        *,
        warn: Callable[[str], None],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.config = config
        self.warn = warn
        self.finite = FiniteCheck(next(model.parameters()).device)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, batches: Sequence[Batch], meter: Meter, progress: TrainProgress) -> None:
        """Take one optimizer step.

        Args:
            batches: All batches of the step; they are kept until it is done, because memory may
                run out in the last of them.
            meter: Meter to which the loss and the predictions are added.
            progress: Train progress before the first batch; ``at_once`` is reduced when memory
                runs out.

        Raises:
            NotFiniteError: a loss or the gradient is not finite; on a CPU no weight has changed.
            FinetuneError: memory does not suffice for two images.
        """
        while not self._fits(batches, progress):
            largest = progress.at_once or max(len(labels) for _, labels in batches)
            progress.at_once = halved(largest)
            self.warn_of_memory(progress.at_once)
        self._move(progress, whole=len(batches) == 1 and not progress.at_once)
        self._count(meter)

    def warn_of_memory(self, at_once: int) -> None:
        """Warn that micro-batches of this many images are used from now on."""
        self.warn(
            f"out of memory: continuing with micro-batches of {at_once} images and "
            "gradient accumulation; trainable norm layers now see micro-batch statistics"
        )

    def _count(self, meter: Meter) -> None:
        """Add the losses and predictions of the step to the meter."""
        for logits, labels, loss in self._seen:
            meter.add(logits, labels if labels.dim() == 1 else labels.argmax(dim=1), loss=loss)
        self._seen.clear()

    def _fits(self, batches: Sequence[Batch], progress: TrainProgress) -> bool:
        """Run forward and backward; return False if memory runs out."""
        self.optimizer.zero_grad(set_to_none=True)
        self._seen.clear()
        try:
            for number, (inputs, labels) in enumerate(batches):
                seed = seed_for(self.config.seed, "step", progress.batches + number)
                seed_generators(labels.device, seed)
                for part, part_labels in cut(inputs, labels, progress.at_once):
                    total = self._loss(part, part_labels)
                    self.finite.add(total, self._error("the training loss", progress, number))
                    if len(batches) > 1 or progress.at_once:
                        total = total * len(part_labels)
                    total.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _loss(self, inputs: Features, labels: Tensor) -> Tensor:
        logits, *aux_logits = _outputs(self.model(*inputs))
        loss = self.loss(logits, labels)
        self._seen.append((logits.detach(), labels, loss.detach()))
        for aux in aux_logits:
            loss = loss + self.loss.config.aux_weight * self.loss(aux, labels)
        return loss

    def _move(self, progress: TrainProgress, *, whole: bool) -> None:
        """Clip the gradient and take the optimizer step.

        Args:
            whole: Whether the gradient is already that of the mean loss, not of the sum.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not whole:
            images = sum(len(labels) for _, labels, _ in self._seen)
            for gradient in gradients:
                gradient.div_(images)
        norm = get_total_norm(gradients)
        self.finite.add(norm, self._error("the gradient", progress, 0))
        if self.config.clip_norm is not None:
            clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        self.optimizer.step()

    def _error(self, what: str, progress: TrainProgress, number: int) -> NotFiniteError:
        lr = float(self.optimizer.param_groups[0]["lr"])
        batch = progress.batch + number + 1
        return NotFiniteError(what, epoch=progress.epoch, batch=batch, lr=lr)


def halved(images: int) -> int:
    """Return half of a number of images.

    Raises:
        FinetuneError: it would be less than two.
    """
    if images // 2 < _FEWEST_AT_ONCE:
        raise FinetuneError(
            f"out of memory with {images} images at a time",
            kind="machine.out_of_memory",
            to_do="freeze more of the network, or use a smaller network or a smaller crop "
            "(model.preprocessing)",
        )
    return images // 2


def cut(inputs: Features, labels: Tensor, at_once: int) -> Iterator[Batch]:
    """Split a batch into micro-batches of about equal size and at least two images; 0: no split."""
    if not at_once or not len(labels):
        yield inputs, labels
        return
    pieces = min(-(-len(labels) // at_once), max(len(labels) // _FEWEST_AT_ONCE, 1))
    parts = zip(*(tensor.tensor_split(pieces) for tensor in inputs), strict=True)
    yield from zip(parts, labels.tensor_split(pieces), strict=True)


def _outputs(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the head's logits, then those of auxiliary heads (googlenet and inception_v3)."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(part for part in output if part is not None)
