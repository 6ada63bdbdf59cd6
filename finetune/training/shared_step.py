"""Optimizer step of several processes, each of which computes some rows of every batch.

One all-reduce carries the gradients, summed over images, and what each process reports about the
step (`finetune.distributed.verdict`). Dividing by the number of images of all processes gives the
gradient of one process with the whole batch. torch's DistributedDataParallel would average the
means of the shares instead, which differ from that where shares are uneven; it would reduce at
every backward pass of an accumulated step, and it cannot go on where one process runs out of memory
(docs/distributed.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.checkpoints.train_progress import TrainProgress
from finetune.core.device import seed_generators
from finetune.core.errors import FinetuneError
from finetune.core.memory import is_out_of_memory
from finetune.core.seeding import seed_for
from finetune.distributed.global_batch import norms_are_shared, rows_of_batch
from finetune.distributed.verdict import Unread, Verdict
from finetune.training.loss import Loss
from finetune.training.metrics import Meter
from finetune.training.step import Batch, Step, StepConfig, cut, halved


class SharedStep(Step):
    """`Step` of several processes; its batches have this process's rows of each whole batch.

    Args:
        verdict: Reports of all processes, which the training loop acts on between two steps.
        sizes: Number of images of each whole batch of an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        config: StepConfig,
        *,
        warn: Callable[[str], None],
        verdict: Verdict,
        sizes: Sequence[int],
    ) -> None:
        super().__init__(model, optimizer, loss, config, warn=warn)
        self._verdict = verdict
        self._sizes = sizes
        self._used: list[bool] | None = None
        """Whether each parameter has a gradient; known after the first backward pass."""

    def take(
        self, batches: Sequence[Batch | Unread], meter: Meter, progress: TrainProgress
    ) -> None:
        """Take one optimizer step together with the other processes.

        Raises:
            UnreadableError: a process cannot decode images of a batch.
            StepStopped: a process cannot read its batch because of a signal.
            NotFiniteError: a loss or the gradient is not finite; no weight has changed.
            FinetuneError: memory does not suffice for two images, or for this process's share.
        """
        unread = next((one for one in batches if isinstance(one, Unread)), None)
        whole = self._whole(progress, self.config.accumulate)
        if any(norms_are_shared(self.model, size) for size in whole):
            # The others would wait within a norm for a process that has no batch.
            self._verdict.exchange(unread)
        own = [one for one in batches if not isinstance(one, Unread)]
        while not self._all_fit(own, unread, progress):
            ranks = self._verdict.group.ranks
            largest = progress.at_once or -(-max(whole) // ranks.size)
            progress.at_once = halved(largest)
            self.warn_of_memory(progress.at_once)
        self._move(progress, whole=True)
        self._count(meter)

    def _whole(self, progress: TrainProgress, number: int) -> Sequence[int]:
        return self._sizes[progress.batch : progress.batch + number]

    def _all_fit(
        self, batches: Sequence[Batch], unread: Unread | None, progress: TrainProgress
    ) -> bool:
        """Compute this process's gradient and add up those of all; return False if memory runs out
        in any of them."""
        fits = True
        not_finite: list[Tensor] = []
        if unread is None:
            fits = self._backward(batches, progress, not_finite)
        images = sum(len(labels) for _, labels, _ in self._seen)
        reports = [float(images), *self._verdict.report(fits=fits, unread=unread)]
        bad = torch.stack(not_finite).sum() if not_finite else None
        images_of_all, bad_of_all, *reports = self._added_up(
            reports, bad, computed=fits and unread is None
        )
        self._verdict.take(reports, unread)
        if not self._verdict.fits:
            self._used = None  # a process may not have come to all parameters
            return False
        if bad_of_all:
            raise self._first_not_finite(not_finite, progress)
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        torch._foreach_div_(gradients, images_of_all)
        return True

    def _backward(
        self, batches: Sequence[Batch], progress: TrainProgress, not_finite: list[Tensor]
    ) -> bool:
        """Compute the gradient of the sum of the losses of this process's rows.

        Args:
            not_finite: Receives for each batch whether its loss is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._seen.clear()
        shares_norms = False
        ranks = self._verdict.group.ranks
        try:
            for number, (inputs, labels) in enumerate(batches):
                seed = seed_for(self.config.seed, "step", progress.batches + number)
                seed_generators(labels.device, seed)
                whole = self._sizes[progress.batch + number]
                start = ranks.rows(whole).start
                shares_norms = norms_are_shared(self.model, whole)
                at_once = 0 if shares_norms else progress.at_once
                bad = torch.zeros((), device=labels.device)
                for part, part_labels in cut(inputs, labels, at_once):
                    if not len(part_labels) and not shares_norms:
                        continue
                    with rows_of_batch(start, whole):
                        total = self._loss(part, part_labels)
                    start += len(part_labels)
                    if len(part_labels):
                        bad += ~total.detach().isfinite()
                        total = total * len(part_labels)
                    else:  # a share without rows takes part in the norms alone
                        self._seen.pop()
                        total = torch.nan_to_num(total) * 0
                    total.backward()  # type: ignore[no-untyped-call]
                not_finite.append(bad)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if shares_norms:  # the others wait for this process within their forward pass
                raise FinetuneError(
                    "out of memory within a batch norm over all processes",
                    kind="machine.out_of_memory",
                    to_do="set runtime.norms: apart, a smaller data.batch_size, or use more "
                    "processes",
                ) from error
            return False
        return True

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _added_up(
        self, reports: Sequence[float], bad: Tensor | None, *, computed: bool
    ) -> list[float]:
        """Add up the gradients of all processes in place, and return the summed reports.

        Args:
            bad: Number of batches whose loss is not finite.
            computed: Whether all gradients of this process were computed; if not, zeros are added.
        """
        parameters, group = self._parameters(), self._verdict.group
        if self._used is None:
            has = torch.tensor([float(p.grad is not None) for p in parameters])
            self._used = [bool(count) for count in group.add_up(has).tolist()]
        used = [p for p, is_used in zip(parameters, self._used, strict=True) if is_used]
        used = used or parameters
        for parameter in used:
            if parameter.grad is None or not computed:
                parameter.grad = torch.zeros_like(parameter)
        like = used[0]
        tail = like.new_tensor(reports)
        count = like.new_zeros(1) if bad is None else bad.to(like).reshape(1)
        flat = torch.cat([*(_grad(p).reshape(-1) for p in used), count, tail])
        group.add_up(flat)
        at = 0
        for parameter in used:
            size = parameter.numel()
            _grad(parameter).copy_(flat[at : at + size].view_as(parameter))
            at += size
        bad_of_all, images, *others = flat[at:].tolist()
        return [images, bad_of_all, *others]

    def _first_not_finite(
        self, not_finite: Sequence[Tensor], progress: TrainProgress
    ) -> FinetuneError:
        own = [number for number, bad in enumerate(not_finite) if bad.item()]
        every = [number for of_one in self._verdict.group.gather(own) for number in of_one]
        return self._error("the training loss", progress, min(every))


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
