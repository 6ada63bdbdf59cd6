"""Optimizer step of several processes, each of which computes some rows of every batch.

The gradients are summed over the images of all processes (`finetune.distributed.gradient_sum`),
together with what each process reports about the step (`finetune.distributed.verdict`). Dividing by
the number of images of all processes gives the gradient of one process with the whole batch.
torch's DistributedDataParallel would average the means of the shares instead, which differ from
that where shares are uneven; it would reduce at every backward pass of an accumulated step, and it
cannot go on where one process runs out of memory (docs/distributed.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.checkpoints.train_progress import TrainProgress
from finetune.core.device import seed_generators
from finetune.core.errors import FinetuneError
from finetune.core.memory import is_out_of_memory
from finetune.core.seeding import seed_for
from finetune.distributed.global_batch import norms_are_shared, rows_of_batch
from finetune.distributed.gradient_sum import GradientSum
from finetune.distributed.verdict import Unread, Verdict
from finetune.freezing.graph_split import Features
from finetune.training.loss import Loss
from finetune.training.metrics import Meter
from finetune.training.step import Batch, Step, StepConfig, cut, halved


@dataclass(frozen=True)
class _Part:
    """Rows of a batch that are computed at once.

    Attributes:
        number: Index of the batch in the step.
        is_first: Whether these are the first rows of this process in the batch.
        start: Index of the first row in the whole batch.
        whole: Number of rows of the whole batch.
        shares_norms: Whether batch norms use the rows of all processes.
    """

    number: int
    is_first: bool
    inputs: Features
    labels: Tensor
    start: int
    whole: int
    shares_norms: bool


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
        self._sum: GradientSum | None = None
        """Sum of the gradients that a step computes; known after the first backward pass."""

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
            self._sum = None  # a process may not have come to all parameters
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
        is_within_norms = False
        parts = self._parts(batches, progress)
        try:
            for part in parts:
                is_within_norms = part.shares_norms
                if part.is_first:
                    seed = seed_for(self.config.seed, "step", progress.batches + part.number)
                    seed_generators(part.labels.device, seed)
                    not_finite.append(torch.zeros((), device=part.labels.device))
                if not len(part.labels) and not part.shares_norms:
                    continue
                with rows_of_batch(part.start, part.whole):
                    total = self._loss(part.inputs, part.labels)
                if len(part.labels):
                    not_finite[-1] += ~total.detach().isfinite()
                    total = total * len(part.labels)
                else:  # a share without rows takes part in the norms alone
                    self._seen.pop()
                    total = torch.nan_to_num(total) * 0
                with self._exchanging(is_last=part is parts[-1]):
                    total.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_within_norms:  # the others wait for this process within their forward pass
                raise FinetuneError(
                    "out of memory within a batch norm over all processes",
                    kind="machine.out_of_memory",
                    to_do="set runtime.norms: apart, a smaller data.batch_size, or use more "
                    "processes",
                ) from error
            return False
        return True

    def _exchanging(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass; in the last one, sums of gradients are started."""
        return self._sum.overlapping() if self._sum and is_last else nullcontext()

    def _parts(self, batches: Sequence[Batch], progress: TrainProgress) -> list[_Part]:
        """Divide the batches into what is computed at once."""
        parts = []
        for number, (inputs, labels) in enumerate(batches):
            whole = self._sizes[progress.batch + number]
            start = self._verdict.group.ranks.rows(whole).start
            shares_norms = norms_are_shared(self.model, whole)
            at_once = 0 if shares_norms else progress.at_once
            for at, (some, own) in enumerate(cut(inputs, labels, at_once)):
                parts.append(_Part(number, at == 0, some, own, start, whole, shares_norms))
                start += len(own)
        return parts

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
        if self._sum is None:
            has = torch.tensor([float(p.grad is not None) for p in parameters])
            every = zip(parameters, group.add_up(has).tolist(), strict=True)
            self._sum = GradientSum(group, [p for p, count in every if count] or parameters)
        like = parameters[0]
        count = like.new_zeros(1) if bad is None else bad.to(like).reshape(1)
        tail = torch.cat([count, like.new_tensor(reports)])
        bad_of_all, images, *others = self._sum.finish(tail, computed=computed).tolist()
        return [images, bad_of_all, *others]

    def _first_not_finite(
        self, not_finite: Sequence[Tensor], progress: TrainProgress
    ) -> FinetuneError:
        own = [number for number, bad in enumerate(not_finite) if bad.item()]
        every = [number for of_one in self._verdict.group.gather(own) for number in of_one]
        return self._error("the training loss", progress, min(every))
