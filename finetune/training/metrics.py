"""Loss and accuracy as sums and counts, so that every image has the same weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.distributed.group import Group

TOP5_FROM = 6
"""Smallest number of classes for which top-5 accuracy is reported; with five it is always 1."""


def balanced_accuracy(correct: Sequence[float], counts: Sequence[float]) -> float:
    """Mean recall over the classes that have samples.

    Args:
        correct, counts: Numbers, or sums of weights, of correct and of all samples by class.
    """
    return _mean_ratio(correct, counts)


def macro_f1(
    correct: Sequence[float], counts: Sequence[float], predicted: Sequence[float]
) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes that occur or were predicted.

    This is the definition of torchmetrics.

    Args:
        correct, counts: As in `balanced_accuracy`.
        predicted: Numbers, or sums of weights, of the samples predicted to be of each class.
    """
    both = [count + named for count, named in zip(counts, predicted, strict=True)]
    return _mean_ratio([2 * hits for hits in correct], both)


def _mean_ratio(parts: Sequence[float], wholes: Sequence[float]) -> float:
    """Mean of part / whole over the classes whose whole is not 0."""
    ratios = [part / whole for part, whole in zip(parts, wholes, strict=True) if whole]
    return sum(ratios) / len(ratios)


class Meter:
    """Running sums of metrics on the device; averages are computed only when they are read."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        # MPS has no float64; a float32 sum is exact enough for the few thousand batches there.
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=precise, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._correct = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._answered = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._classes = (torch.arange(num_classes, device=device),)  # no sum, so not in `tensors`

    def reset(self) -> None:
        """Reset all sums to zero."""
        for total in self.tensors().values():
            total.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name, without copying them."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load sums returned by `tensors`."""
        for name, total in self.tensors().items():
            total.copy_(tensors[name])

    def added_up(self, group: Group) -> Meter:
        """Return the meter of all processes' batches."""
        if not group.are_several:
            return self
        whole = Meter(self.num_classes, self._loss.device)
        for name, total in whole.tensors().items():
            group.add_up(total.copy_(self.tensors()[name]))
        return whole

    def in_order(self, group: Group, losses: Sequence[Tensor], batches: int) -> Meter:
        """Return the meter of all processes' batches, with the bits that one process would get.

        Args:
            losses: What `add` returned for each batch of this process, which are those at its rank
                and at every so many further as there are processes.
            batches: Number of batches of all processes.
        """
        if not group.are_several:
            return self
        whole = self.added_up(group)
        every = torch.zeros(batches, dtype=self._loss.dtype, device=self._loss.device)
        if losses:
            every[group.ranks.rank :: group.ranks.size] = torch.stack(list(losses))
        whole._loss.zero_()
        for loss in group.add_up(every):  # one after the other: the order decides the last bits
            whole._loss += loss
        return whole

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, *, loss: Tensor | None = None) -> Tensor:
        """Add one batch, and return the sum of the losses of its samples.

        Args:
            logits: Logits ``(N, num_classes)``.
            labels: Labels ``(N,)`` int64.
            loss: Mean loss of the batch; None computes the cross-entropy in float32.
        """
        if loss is None:
            loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
        else:
            loss_sum = loss.detach() * len(labels)
        loss_sum = loss_sum.to(self._loss.dtype)
        self._loss += loss_sum
        answers = logits.argmax(dim=1)
        hit = answers == labels
        every = torch.ones_like(hit)
        self._count += self._by_class(labels, every)
        self._correct += self._by_class(labels, hit)
        self._answered += self._by_class(answers, every)
        if self.num_classes >= TOP5_FROM:
            self._top5 += (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).sum()
        return loss_sum

    def _by_class(self, classes: Tensor, counted: Tensor) -> Tensor:
        """Count the samples of each class by comparisons.

        bincount or a mask would synchronise with the device to get the size of their result, and
        index_add would sort on CUDA in deterministic mode.
        """
        [every] = self._classes
        return ((classes[:, None] == every) & counted[:, None]).sum(dim=0)

    @property
    def num_images(self) -> int:
        """Number of samples added."""
        return int(self._count.sum())

    @property
    def loss(self) -> float:
        """Mean loss per sample; not finite if the loss of any sample was not."""
        return float(self._loss) / self.num_images

    @property
    def top1(self) -> float:
        """Fraction of samples whose label has the highest logit."""
        return int(self._correct.sum()) / self.num_images

    @property
    def top5(self) -> float | None:
        """Fraction of samples whose label is among the five highest logits.

        None if there are at most five classes.
        """
        if self.num_classes < TOP5_FROM:
            return None
        return int(self._top5) / self.num_images

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have samples."""
        return balanced_accuracy(self._correct.tolist(), self._count.tolist())

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur or were predicted."""
        return macro_f1(self._correct.tolist(), self._count.tolist(), self._answered.tolist())

    def per_class(self) -> list[tuple[int, int]]:
        """Return the numbers of correct and of all samples of each class."""
        return list(zip(self._correct.tolist(), self._count.tolist(), strict=True))
