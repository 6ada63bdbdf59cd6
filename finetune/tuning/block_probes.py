"""Linear probes on the pooled output of every block: how much each depth of a network knows.

One pass over the photos computes the outputs of all blocks, averaged over the positions of the
image (Alain and Bengio 2016 trained such probes on the layers of Inception v3).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.core.reporter import Reporter
from finetune.core.seeding import seed_for
from finetune.core.signals import unless_asked
from finetune.core.threads import one_thread_a_core
from finetune.data.images import Images
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.views import Views
from finetune.freezing.flops import module_multiply_adds
from finetune.freezing.graph_split import Features
from finetune.freezing.plan import Plan
from finetune.models.blocks import Block, units_of
from finetune.models.norm_layers import norm_layers
from finetune.recipes.named import Anatomy
from finetune.training.prepare_stage import StageSetup
from finetune.tuning.logistic_regression import Standardisation, fit_path

MOST_TRAIN, MOST_VAL = 4_000, 4_000
"""Largest numbers of images to fit and to judge the probes on."""
_BATCH = 64
_PENALTIES = (1.0, 0.1, 0.01, 0.001)
_HELD_OUT = 5
"""One of this many training images selects the penalty."""


@dataclass(frozen=True)
class DepthProbe:
    """Linear probe on the pooled output of one block.

    Attributes:
        block: Block, with its number of parameters.
        dimensions: Number of features.
        work: Share of the multiply-adds of the forward pass up to the end of the block.
        num_correct: Number of correctly classified validation images.
        penalty: L2 penalty, selected on a fifth of the training images.
    """

    block: Block
    dimensions: int
    work: float
    num_correct: int
    penalty: float


@dataclass(frozen=True)
class DepthProbes:
    """Probes of all blocks, first to last.

    Attributes:
        num_train, num_val: Numbers of images that they were fitted and judged on.
    """

    probes: tuple[DepthProbe, ...]
    num_train: int
    num_val: int


def probe_blocks(stage_setup: StageSetup, reporter: Reporter) -> DepthProbes:
    """Fit a linear probe on the pooled output of each block of the network.

    Args:
        stage_setup: Setup of a stage before its first step, with validation images.
    """
    blocks, work = blocks_with_work(stage_setup.plan)
    data = stage_setup.data
    train, val = _some(data.train, MOST_TRAIN), _some(data.val, MOST_VAL)
    paths = [block.name for block in blocks]
    outputs = PooledOutputs(
        stage_setup.engine.extractor.form.arrange(copy.deepcopy(stage_setup.model), cast=True),
        [*paths[1:], stage_setup.plan.spec.family.head],
        channels_last=stage_setup.plan.spec.family.name.startswith("swin"),
    )
    known = _computed(stage_setup, outputs, train, reporter, "the training images")
    judged = _computed(stage_setup, outputs, val, reporter, "the validation images")
    labels, truth = (torch.tensor(images.labels, device=known[0].device) for images in (train, val))
    classes = len(train.class_names)
    generator = torch.Generator().manual_seed(seed_for(stage_setup.config.seed, "block probes"))
    order = torch.randperm(len(train), generator=generator).to(labels.device)

    def fitted(row: tuple[Block, float, Tensor, Tensor]) -> DepthProbe:
        block, share, features, other = row
        standardised = Standardisation.of(features)
        features, other = standardised(features), standardised(other)
        penalty = _selected(features[order], labels[order], classes)
        path = [one for one in _PENALTIES if one >= penalty]
        *_, layer = fit_path(features, labels, num_classes=classes, penalties=path)
        correct = int((layer(other).argmax(dim=1) == truth).sum())
        return DepthProbe(block, features.shape[1], share, correct, penalty)

    rows = list(zip(blocks, work, known, judged, strict=True))
    with one_thread_a_core(len(rows)) as pool:
        fits = unless_asked(pool.map(fitted, rows))
        found = tuple(reporter.track(fits, "fit the probes", total=len(rows)))
    return DepthProbes(found, len(train), len(val))


def _selected(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return the penalty with the best accuracy on a held-out fifth; of equals, the largest."""
    held = len(features) // _HELD_OUT
    path = fit_path(features[held:], labels[held:], num_classes=num_classes, penalties=_PENALTIES)
    hits = [int((layer(features[:held]).argmax(dim=1) == labels[:held]).sum()) for layer in path]
    return _PENALTIES[hits.index(max(hits))]


def _some(images: Images, most: int) -> Images:
    """Return at most this many images, evenly spaced."""
    count = min(len(images), most)
    return images.subset([at * len(images) // count for at in range(count)])


def blocks_with_work(plan: Plan) -> tuple[list[Block], list[float]]:
    """Return the blocks of a network, and the share of the work up to the end of each.

    A norm layer between blocks belongs to the block before it.
    """
    anatomy = Anatomy.of(plan.skeleton, plan.spec)
    norms = {path for path, _ in norm_layers(plan.skeleton)}
    units = units_of(anatomy.parameters, plan.spec.family.block)
    blocks = [unit for unit in units if not unit.alone and unit.name not in norms]
    macs = module_multiply_adds(plan.skeleton, crop=plan.spec.preprocessing.crop)
    total, so_far = sum(macs.values()), 0
    work = []
    for block in blocks:
        so_far += block.work(macs)
        work.append(so_far / total)
    return blocks, work


class PooledOutputs(nn.Module):
    """Network that returns what several of its modules are given, averaged over positions.

    The input of the next block is the output of a block, with the norm, activation and pooling that
    follow it. May be called from several threads.

    Args:
        network: Network, which gets hooks.
        readers: Paths of the modules whose inputs are returned.
        channels_last: Whether maps are ``(N, H, W, C)``, as in Swin transformers.
    """

    def __init__(self, network: nn.Module, readers: Sequence[str], *, channels_last: bool) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._readers = tuple(readers)
        self._positions = (1, 2) if channels_last else (2, 3)
        self._here = threading.local()
        for path in readers:
            network.get_submodule(path).register_forward_pre_hook(self._keeper(path))

    def _keeper(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            self._here.kept.setdefault(path, self._pooled(args[0]))

        return keep

    def _pooled(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            return tensor.float().mean(dim=self._positions)
        return tensor.float().mean(dim=1) if tensor.dim() == 3 else tensor.float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Return a tensor ``(N, C)`` float32 for each reader."""
        self._here.kept = {}
        self.network(images)
        return tuple(self._here.kept[path] for path in self._readers)


def _computed(
    stage_setup: StageSetup,
    outputs: PooledOutputs,
    images: Images,
    reporter: Reporter,
    what: str,
) -> list[Tensor]:
    """Return the pooled outputs ``(N, C)`` of each block for all images."""
    extractor = replace(stage_setup.engine.extractor, prefix=outputs, origin=None)
    dataset = PhotoDataset(images, extractor.preprocessing, Views.of("none"))
    batches = Batches(
        dataset,
        batch_size=_BATCH,
        workers=stage_setup.config.data.workers,
        device=extractor.device,
    )
    tracked: Iterable[tuple[Tensor, Tensor]] = reporter.track(
        batches.epoch(), f"compute the blocks' outputs for {what}", total=len(batches)
    )
    parts = [extractor(pixels) for pixels, _ in tracked]
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
