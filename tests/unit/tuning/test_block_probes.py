"""Tests of linear probes on the pooled output of every block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.freezing.plan import make_plan
from finetune.models.build import rebuild
from finetune.training.prepare_stage import StageSetup, prepare_single_stage
from finetune.tuning import block_probes
from finetune.tuning.block_probes import PooledOutputs, probe_blocks

Make = Callable[..., Config]

FIXED = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def stage_setup(make_config: Make) -> StageSetup:
    return prepare_single_stage(make_config(runtime=FIXED), SilentReporter(), what="test")


def test_every_block_has_a_probe_judged_on_all_validation_images(stage_setup: StageSetup) -> None:
    found = probe_blocks(stage_setup, SilentReporter())
    names = [probe.block.name for probe in found.probes]
    assert names[0] == "conv1"
    assert names[-1] == "conv5"
    assert "stage3.7" in names
    assert (found.num_train, found.num_val) == (18, 10)
    work = [probe.work for probe in found.probes]
    assert work == sorted(work)
    assert work[-1] > 0.95  # without the head


def test_a_probe_separates_classes_that_differ_in_colour(stage_setup: StageSetup) -> None:
    found = probe_blocks(stage_setup, SilentReporter())
    assert max(probe.num_correct for probe in found.probes) == 10


def test_probes_are_the_same_in_every_run(stage_setup: StageSetup) -> None:
    assert probe_blocks(stage_setup, SilentReporter()) == probe_blocks(
        stage_setup, SilentReporter()
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v3_small", 32),
        ("resnet18", 32),
        ("squeezenet1_1", 48),
        ("vit_b_16", 32),
        ("swin_t", 32),
        ("convnext_tiny", 32),
        ("googlenet", 32),
        ("vgg11", 32),
    ],
)
def test_pooled_outputs_are_the_mean_inputs_of_the_next_blocks(
    make_config: Make, name: str, size: int
) -> None:
    flags = {"image_size": size} if name.startswith("vit") else {}
    model = {"name": name, "weights": "none", "preprocessing": {"resize": size, "crop": size}}
    plan = make_plan(make_config(model=model), 3)
    blocks, work = block_probes.blocks_with_work(plan)
    network = rebuild(name, 3, {**plan.spec.build_flags, **flags}).eval()
    readers = [*(block.name for block in blocks[1:]), plan.spec.family.head]
    given: dict[str, torch.Tensor] = {}
    for path in readers:
        network.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: given.setdefault(path, args[0])
        )
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        network(images)
    swin = name.startswith("swin")
    pooled = PooledOutputs(network, readers, channels_last=swin)(images)
    assert len(pooled) == len(blocks) == len(work)
    for path, found in zip(readers, pooled, strict=True):
        tensor = given[path]
        over = {2: (), 3: (1,), 4: (1, 2) if swin else (2, 3)}[tensor.dim()]
        assert torch.allclose(found, tensor.mean(dim=over) if over else tensor, atol=1e-5)
