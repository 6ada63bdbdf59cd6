"""Loss and accuracy as sums and counts, so that a short last batch weighs what it holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

TOP5_FROM = 6
"""Top-5 says something only where there are more than five classes."""


class Meter:
    """Sums over samples; nothing is averaged before the end, and nothing leaves the device."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        # MPS has no float64; a float32 sum is exact enough for the few thousand batches there.
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=precise, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._correct = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._answered = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget every sample."""
        for total in self.tensors().values():
            total.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The sums, by name; they go on counting."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Count on from such sums."""
        for name, total in self.tensors().items():
            total.copy_(tensors[name])

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, *, loss: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            logits: ``(N, num_classes)``.
            labels: ``(N,)`` int64.
            loss: Mean loss of the batch where it was computed already; else cross-entropy is
                summed here, in float32.
        """
        if loss is None:
            loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
        else:
            loss_sum = loss.detach() * len(labels)
        self._loss += loss_sum.to(self._loss.dtype)
        answers = logits.argmax(dim=1)
        hit = answers == labels
        self._count += torch.bincount(labels, minlength=self.num_classes)
        self._correct += torch.bincount(labels[hit], minlength=self.num_classes)
        self._answered += torch.bincount(answers, minlength=self.num_classes)
        if self.num_classes >= TOP5_FROM:
            self._top5 += (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).sum()

    @property
    def num_images(self) -> int:
        """Samples seen."""
        return int(self._count.sum())

    @property
    def loss(self) -> float:
        """Mean loss a sample; not a number if any was."""
        return float(self._loss) / self.num_images

    @property
    def top1(self) -> float:
        """Share of samples whose highest logit is the label's."""
        return int(self._correct.sum()) / self.num_images

    @property
    def top5(self) -> float | None:
        """Share of samples whose label is among the five highest; None up to five classes."""
        if self.num_classes < TOP5_FROM:
            return None
        return int(self._top5) / self.num_images

    @property
    def balanced_accuracy(self) -> float:
        """Mean over classes of the share recognised; of the classes that have samples."""
        shares = [correct / count for correct, count in self.per_class() if count]
        return sum(shares) / len(shares)

    @property
    def macro_f1(self) -> float:
        """Mean over classes of 2 TP / (2 TP + FP + FN); of those that occur or were answered, as
        torchmetrics counts them."""
        answered: list[int] = self._answered.tolist()
        pairs = [
            (2 * correct, count + named)
            for (correct, count), named in zip(self.per_class(), answered, strict=True)
            if count + named
        ]
        return sum(twice / both for twice, both in pairs) / len(pairs)

    def per_class(self) -> list[tuple[int, int]]:
        """Correct and counted samples of each class."""
        return list(zip(self._correct.tolist(), self._count.tolist(), strict=True))
