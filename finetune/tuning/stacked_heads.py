"""Stacked heads: many heads trained at once as one layer, each with its own settings.

A layer of ``count * C`` outputs is ``count`` heads of C outputs. Modules before it, such as a
dropout, are computed once for all heads; modules after it (squeezenet's ReLU and pooling) work on
each channel separately. No head's loss depends on another's weights, so the gradient of the sum of
losses contains each head's own gradient. Each head is trained as by `train_epochs` alone: with the
same batches, dropout and optimizer rules, up to float32 rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from finetune.config.resolved import ResolvedSchedule
from finetune.core.device import seed_generators
from finetune.core.seeding import seed_for
from finetune.features.source import FeatureBatch, FeatureBatches
from finetune.freezing.graph_split import TrainablePart
from finetune.models.norm_layers import keeps_statistics
from finetune.results.tuning import FoldScore
from finetune.training.loss import mean_over_images, weights_on
from finetune.training.metrics import balanced_accuracy, macro_f1
from finetune.tuning.shared_dropout import SharedDropout
from finetune.tuning.stacked_optimizers import HeadSettings, StackedOptimizer, rows_of

# Modules permitted after a head, which do not mix its outputs.
_CHANNELWISE = (nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)


def lone_head(trainable_part: nn.Module) -> str | None:
    """Return the path of the only trainable layer if heads can be stacked in it; else None."""
    if not isinstance(trainable_part, TrainablePart):
        return None
    trained = {
        name for name, parameter in trainable_part.named_parameters() if parameter.requires_grad
    }
    paths = {name.rpartition(".")[0] for name in trained}
    if len(paths) != 1 or any(keeps_statistics(m) and m.training for m in trainable_part.modules()):
        return None
    (path,) = paths
    layer = trainable_part.get_submodule(path)
    plain_conv = isinstance(layer, nn.Conv2d) and layer.groups == 1
    if not isinstance(layer, nn.Linear) and not plain_conv:
        return None
    return (
        path
        if _only_channelwise_behind(trainable_part.graph, path.removeprefix("graph."))
        else None
    )


def _only_channelwise_behind(graph: fx.GraphModule, path: str) -> bool:
    behind: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target == path:
            behind.add(node)
        elif any(argument in behind for argument in node.all_input_nodes):
            fits = node.op == "output" or node.target is torch.flatten
            if node.op == "call_module":
                fits = isinstance(graph.get_submodule(str(node.target)), _CHANNELWISE)
            if not fits:
                return False
            behind.add(node)
    return bool(behind)


class StackedHeads(nn.Module):
    """Network with several heads instead of one, initially identical.

    Args:
        network: Network that returns logits ``(N, C)``; it is copied.
        path: Path of its head.
        count: Number of heads.
    """

    def __init__(self, network: nn.Module, path: str, count: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        layer = self.network.get_submodule(path)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        self.layer = layer
        self.num_classes = len(layer.weight)
        self.count = count
        self._dropouts = [m for m in self.modules() if isinstance(m, SharedDropout)]
        self._replace(lambda weight: weight.repeat(count, *[1] * (weight.dim() - 1)))

    def forward(self, *features: Tensor) -> Tensor:
        """Return logits ``(N, count, C)``."""
        logits: Tensor = self.network(*features)
        return logits.reshape(-1, self.count, self.num_classes)

    def seed(self, seed: int) -> None:
        """Seed the generators used in a step."""
        for dropout in self._dropouts:
            dropout.begin(seed)
        seed_generators(self.layer.weight.device, seed)

    def keep(self, chosen: Tensor) -> None:
        """Keep only the heads with these indices, ``(k,)`` int64."""
        rows = rows_of(chosen, self.num_classes)
        self._replace(lambda weight: weight[rows])
        self.count = len(chosen)

    def only(self, chosen: Tensor) -> StackedHeads:
        """Return a copy with only these heads."""
        other = copy.deepcopy(self)
        other.keep(chosen)
        return other

    def _replace(self, change: Any) -> None:
        for name, parameter in list(self.layer.named_parameters()):
            setattr(self.layer, name, nn.Parameter(change(parameter.detach())))


def train_heads(
    network: nn.Module,
    path: str,
    settings: Sequence[HeadSettings],
    *,
    batches: FeatureBatches,
    schedule: ResolvedSchedule,
    seed: int,
    class_weights: Sequence[float] | None = None,
) -> Iterator[tuple[list[int], StackedHeads]]:
    """Train a head for each of the settings, as `train_epochs` would one by one.

    Yields:
        After each step, the indices of the settings for which it was the last one, and a network
        with only their heads (to be ignored if there are none).

    Args:
        network: Network in train mode, with the initial weights of the head.
        path: Path of the head, from `lone_head`.
    """
    # Sort by optimizer, so that each optimizer's heads are one slice of the layer.
    order = sorted(range(len(settings)), key=lambda at: settings[at].optimizer.name)
    heads = StackedHeads(network, path, len(settings))
    device = heads.layer.weight.device
    updates = StackedOptimizer(
        heads.layer,
        [settings[at] for at in order],
        schedule=schedule,
        steps_per_epoch=len(batches),
    )
    smoothing = torch.tensor([settings[at].label_smoothing for at in order], device=device)
    weights = weights_on(device, class_weights)
    step = 0
    for epoch in range(1, max(one.epochs for one in settings) + 1):
        for number, (features, labels) in enumerate(batches.epoch(epoch), start=1):
            heads.seed(seed_for(seed, "step", step))
            losses = mean_over_images(_losses(heads(*features), labels, smoothing), labels, weights)
            heads.layer.zero_grad(set_to_none=True)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            updates.step(heads.layer, step)
            step += 1
            if number < len(batches):
                yield [], heads
        last = torch.tensor([settings[at].epochs == epoch for at in order], device=device)
        ended, going_on = last.nonzero()[:, 0], (~last).nonzero()[:, 0]
        yield [order[at] for at in ended.tolist()], heads.only(ended) if len(ended) else heads
        if len(ended) and len(going_on):
            order = [order[at] for at in going_on.tolist()]
            heads.keep(going_on)
            updates.keep(going_on)
            smoothing = smoothing[going_on]


def _losses(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Return the cross-entropy of each image and head, ``(N, count)``.

    Args:
        logits: Logits ``(N, count, C)``.
        labels: Class indices ``(N,)`` int64.
        smoothing: Label smoothing of each head, ``(count,)``.
    """
    log_shares = F.log_softmax(logits, dim=2)
    true = log_shares.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[:, :, 0]
    return (smoothing - 1) * true - smoothing * log_shares.mean(dim=2)


@torch.no_grad()
def score_heads(heads: StackedHeads, batches: Iterable[FeatureBatch]) -> list[FoldScore]:
    """Compute the metrics of every head over all samples, as `evaluate` does for one.

    The heads are in eval mode afterwards.
    """
    device, classes = heads.layer.weight.device, heads.num_classes
    precise = torch.float32 if device.type == "mps" else torch.float64
    hits = torch.zeros(classes, heads.count, dtype=precise, device=device)
    answers = torch.zeros_like(hits)
    counts = torch.zeros(classes, dtype=precise, device=device)
    loss = torch.zeros(heads.count, dtype=precise, device=device)
    heads.eval()
    for features, labels in batches:
        logits = heads(*features)
        answered = logits.argmax(dim=2)
        right = (answered == labels[:, None]).to(precise)
        hits.index_add_(0, labels, right)
        answers.scatter_add_(0, answered, torch.ones_like(right))
        counts += torch.bincount(labels, minlength=classes)
        every = labels[:, None].expand(-1, heads.count)
        losses = F.cross_entropy(logits.transpose(1, 2), every, reduction="none")
        loss += losses.sum(dim=0, dtype=precise)
    number = int(counts.sum())
    return [
        FoldScore(
            num_images=number,
            top1=sum(correct) / number,
            balanced_accuracy=balanced_accuracy(correct, counts.tolist()),
            macro_f1=macro_f1(correct, counts.tolist(), predicted),
            loss=total / number,
        )
        for correct, predicted, total in zip(
            hits.T.tolist(), answers.T.tolist(), loss.tolist(), strict=True
        )
    ]
