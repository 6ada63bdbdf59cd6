"""Many heads trained at once: side by side in one layer, each by settings of its own.

A layer of ``count * C`` outputs is ``count`` heads of C outputs. What stands before it (a dropout,
say) is computed once for all of them; what stands behind it (squeezenet's ReLU and pooling) works
channel by channel. No head's loss depends on another's weights, so the gradient of the losses' sum
is each head's own, and a head ends where the ordinary loop would have taken it alone: the same
batches, the same dropout, the same rules, within float32 rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from finetune.config import ScheduleConfig
from finetune.features import FeatureBatch, Source
from finetune.head_updates import HeadSettings, Updates, rows_of
from finetune.keyed import seed_for
from finetune.loss import mean_over_images, weights_on
from finetune.shared_dropout import SharedDropout
from finetune.split import Features, Live
from finetune.train_mode import keeps_statistics
from finetune.tune_results import FoldScore

# What may stand behind a head: nothing that mixes its outputs.
_CHANNELWISE = (nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)


def lone_head(live: nn.Module) -> str | None:
    """Path of the layer that alone trains, where it can be widened; else None."""
    if not isinstance(live, Live):
        return None
    trained = {name for name, parameter in live.named_parameters() if parameter.requires_grad}
    paths = {name.rpartition(".")[0] for name in trained}
    if len(paths) != 1 or any(keeps_statistics(m) and m.training for m in live.modules()):
        return None
    (path,) = paths
    layer = live.get_submodule(path)
    plain_conv = isinstance(layer, nn.Conv2d) and layer.groups == 1
    if not isinstance(layer, nn.Linear) and not plain_conv:
        return None
    return path if _only_channelwise_behind(live.graph, path.removeprefix("graph.")) else None


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


class Heads(nn.Module):
    """A network with several heads in place of its one, all alike at first.

    Args:
        network: Left as it is; gives logits ``(N, C)``.
        path: Of its head.
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

    def forward(self, features: Features) -> Tensor:
        """Logits ``(N, count, C)``."""
        logits: Tensor = self.network(features)
        return logits.reshape(-1, self.count, self.num_classes)

    def seed(self, seed: int) -> None:
        """As `torch.manual_seed` before a step. On a CPU that would note a traceback for each kind
        of device that is not in use, which takes longer than a head's step."""
        for dropout in self._dropouts:
            dropout.begin(seed)
        if self.layer.weight.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def keep(self, chosen: Tensor) -> None:
        """Go on with these heads alone, ``(k,)`` int64."""
        rows = rows_of(chosen, self.num_classes)
        self._replace(lambda weight: weight[rows])
        self.count = len(chosen)

    def only(self, chosen: Tensor) -> Heads:
        """A network with these heads alone."""
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
    batches: Source,
    schedule: ScheduleConfig,
    seed: int,
    class_weights: Sequence[float] | None = None,
) -> Iterator[tuple[list[int], Heads]]:
    """Train a head for each of these settings, as `train_epochs` would one by one.

    Yields:
        After each step: for which settings it was the last, and a network with their heads alone,
        which is of no use where there are none.

    Args:
        network: In train mode, its head at its first weights.
        path: Of the head, from `lone_head`.
    """
    # Each optimizer's heads side by side, so that it moves one slice of the layer.
    order = sorted(range(len(settings)), key=lambda at: settings[at].optimizer.name)
    heads = Heads(network, path, len(settings))
    device = heads.layer.weight.device
    updates = Updates(
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
            losses = mean_over_images(_losses(heads(features), labels, smoothing), labels, weights)
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
    """Cross-entropy of each image and head, ``(N, count)``, each head with its own smoothing.

    Args:
        logits: ``(N, count, C)``.
        labels: ``(N,)`` int64.
        smoothing: Label smoothing of each head, ``(count,)``.
    """
    log_shares = F.log_softmax(logits, dim=2)
    true = log_shares.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[:, :, 0]
    return (smoothing - 1) * true - smoothing * log_shares.mean(dim=2)


@torch.no_grad()
def score_heads(heads: Heads, batches: Iterable[FeatureBatch]) -> list[FoldScore]:
    """Every head's figures over every sample, as `evaluate` gives them for one; the heads are in
    eval mode afterwards."""
    device, classes = heads.layer.weight.device, heads.num_classes
    precise = torch.float32 if device.type == "mps" else torch.float64
    hits = torch.zeros(classes, heads.count, dtype=precise, device=device)
    answers = torch.zeros_like(hits)
    counts = torch.zeros(classes, dtype=precise, device=device)
    loss = torch.zeros(heads.count, dtype=precise, device=device)
    heads.eval()
    for features, labels in batches:
        logits = heads(features)
        answered = logits.argmax(dim=2)
        right = (answered == labels[:, None]).to(precise)
        hits.index_add_(0, labels, right)
        answers.scatter_add_(0, answered, torch.ones_like(right))
        counts += torch.bincount(labels, minlength=classes)
        every = labels[:, None].expand(-1, heads.count)
        losses = F.cross_entropy(logits.transpose(1, 2), every, reduction="none")
        loss += losses.sum(dim=0, dtype=precise)
    number = int(counts.sum())
    top1 = (hits.sum(dim=0) / number).tolist()
    balanced = (hits / counts[:, None])[counts > 0].mean(dim=0).tolist()
    there = counts[:, None] + answers
    f1 = (2 * hits / there).nan_to_num().sum(dim=0) / (there > 0).sum(dim=0)
    figures = (top1, balanced, f1.tolist(), (loss / number).tolist())
    return [FoldScore(number, *scores) for scores in zip(*figures, strict=True)]
